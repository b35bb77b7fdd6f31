//! What `lockstep check` says about KVM: whether it can be opened, has what the VMM needs, and can run more than the
//! micro guest. It makes no VM.

use std::path::Path;

use kvm_ioctls::Kvm;

use super::Line;
use crate::chips;
use crate::hardware::{Hardware, NO_STOCK_KERNELS, NO_STOCK_KERNELS_REMEDY};
use crate::kvm::{API_VERSION, NEEDED};

pub(super) fn check() -> Vec<Line> {
    if !Path::new(KVM).exists() {
        return vec![Line::fail(
            "kvm",
            format!("{KVM} does not exist"),
            "Load kvm_intel or kvm_amd; in a VM, allow nested virtualization; in a container, pass the device in",
        )];
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return vec![Line::fail(
                "kvm",
                format!("{KVM} cannot be opened: {error}"),
                "Add this user to the group kvm, or run as root",
            )];
        }
    };
    let version = kvm.get_api_version();
    let mut lines = vec![if version == API_VERSION {
        Line::ok("kvm", format!("{KVM} opens, API version {version}"))
    } else {
        Line::fail(
            "kvm",
            format!("API version is {version}, not {API_VERSION}"),
            "Use a kernel from after 2007",
        )
    }];
    lines.push(capabilities(&kvm));
    lines.push(several_vcpus(&kvm));
    lines.push(stock_kernels());
    lines
}

fn capabilities(kvm: &Kvm) -> Line {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        let names: Vec<_> = NEEDED.iter().map(|(_, name)| *name).collect();
        return Line::ok("kvm capabilities", names.join(", "));
    }
    Line::fail(
        "kvm capabilities",
        format!("This KVM lacks {}", missing.join(", ")),
        "Use Linux 5.10 or later",
    )
}

/// Whether KVM has the chips that a VM with several vCPUs needs; no other VM does.
fn several_vcpus(kvm: &Kvm) -> Line {
    const NAME: &str = "several vcpus";
    match chips::missing(kvm) {
        None => Line::ok(NAME, "KVM has its own interrupt controllers and timer"),
        Some(lacking) => Line::note(
            NAME,
            format!("This KVM lacks {lacking}, so VMs have one vCPU here"),
            "None needed for VMs with one vCPU; for others load kvm_intel or kvm_amd of Linux 5.10 or later",
        ),
    }
}

/// Whether the processor itself runs the guest's kernel code: without that, only guests that stay in ring 3 work.
fn stock_kernels() -> Line {
    const NAME: &str = "stock kernels";
    match Hardware::of_host() {
        Hardware::Module(module) => Line::ok(
            NAME,
            format!("{module} runs on hardware, so unmodified kernels can run"),
        ),
        Hardware::Unknown(flag) => Line::note(
            NAME,
            format!("Unknown: the processor has {flag}, but no KVM module for it is seen"),
            "None needed for the micro guest",
        ),
        Hardware::Software => Line::note(NAME, NO_STOCK_KERNELS, NO_STOCK_KERNELS_REMEDY),
    }
}

const KVM: &str = "/dev/kvm";

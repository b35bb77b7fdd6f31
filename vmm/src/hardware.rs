//! Whether this host's KVM rests on the processor's own virtualization. One that works in software runs ring 3 as fast as
//! any, but its interpreter of ring 0 lacks instructions that every stock kernel has.
//!
//! `lockstep check` shows it, and a run of a Linux guest asks before it builds a machine. It reads two files of the host
//! and opens no device.

use std::fs;
use std::path::Path;

/// What KVM rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// On the processor, by this module.
    Module(&'static str),
    /// The processor can do it, but nobody sees the module.
    Unknown(String),
    /// On software alone.
    Software,
}

impl Hardware {
    /// Looks at this host.
    #[must_use]
    pub fn of_host() -> Self {
        let loaded = MODULES
            .into_iter()
            .find(|name| Path::new("/sys/module").join(name).exists());
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::of(loaded, &cpu)
    }

    fn of(loaded: Option<&'static str>, cpu: &str) -> Self {
        let flags = cpu.lines().find_map(|line| line.strip_prefix("flags"));
        let flag = flags.and_then(|flags| {
            flags
                .split_whitespace()
                .find(|flag| matches!(*flag, "vmx" | "svm"))
        });
        match (loaded, flag) {
            (Some(module), _) => Self::Module(module),
            (None, Some(flag)) => Self::Unknown(flag.into()),
            (None, None) => Self::Software,
        }
    }
}

/// Why a stock kernel cannot run here, for people.
pub const NO_STOCK_KERNELS: &str =
    "This KVM cannot run stock kernels: it works in software (the processor shows neither vmx nor svm)";
/// What they can do.
pub const NO_STOCK_KERNELS_REMEDY: &str = "Use a host with hardware virtualization; the micro guest runs here all the \
     same, and `cargo xtask lab failover --install` protects a Debian guest on two emulated hosts";
const MODULES: [&str; 2] = ["kvm_intel", "kvm_amd"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_virtualization_leaves_software_alone() {
        let plain = "processor : 0\nflags\t\t: fpu sse2 hypervisor\n";
        assert_eq!(Hardware::of(None, plain), Hardware::Software);
        let amd = "processor : 0\nflags\t\t: fpu svm sse2\n";
        assert_eq!(Hardware::of(None, amd), Hardware::Unknown("svm".into()));
        assert_eq!(Hardware::of(Some("kvm_amd"), plain), Hardware::Module("kvm_amd"));
    }
}

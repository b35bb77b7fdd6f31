//! Which parts of a configuration must be equal on both hosts, as 32 bytes that the hosts compare when they meet.
//!
//! In it: the VM, the timing of the pair, the arbiter and the names of the nodes. Not in it: addresses, run
//! directories, disks, taps and certificates, which a host may see in its own way (and certificates are pinned).

use toml::Spanned;

use super::raw;
use super::{DiskMode, Guest, Node, Pair, Vm};

/// The digest. The arbiter counts as it is written in the file: two hosts may keep the file in different folders.
pub(super) fn digest(vm: &Vm, pair: &Pair, arbiter: &raw::Arbiter, nodes: &[Node]) -> [u8; 32] {
    let mut parts = Parts(blake3::Hasher::new());
    parts.add("lockstep configuration 1");
    parts.add(&vm.name);
    // What lies in the files is compared by whoever reads them; where they lie is each host's own business.
    parts.add(match &vm.guest {
        Guest::Micro => "micro",
        Guest::Linux { initrd: None, .. } => "linux",
        Guest::Linux { initrd: Some(_), .. } => "linux with initrd",
    });
    parts.add(vm.vcpus.get().to_string());
    parts.add(vm.memory_mib.to_string());
    parts.add(&vm.cmdline);
    parts.add(vm.net.map_or(String::new(), |net| format!("{:02x?}", net.mac)));
    parts.add(match vm.disk.map(|disk| disk.mode) {
        None => "",
        Some(DiskMode::Shared) => "shared",
        Some(DiskMode::Mirror) => "mirror",
    });
    for timer in [pair.heartbeat, pair.timeout, pair.lease, pair.stall_limit] {
        parts.add(timer.as_nanos().to_string());
    }
    parts.add(pair.log_window_bytes.to_string());
    parts.add(format!("{:?}", arbiter.kind));
    for value in [&arbiter.dir, &arbiter.address] {
        parts.add(value.as_ref().map(Spanned::get_ref).map_or("", String::as_str));
    }
    for node in nodes {
        parts.add(node.name.as_str());
        parts.add(if node.is_spare { "spare" } else { "" });
    }
    parts.0.finalize().into()
}

struct Parts(blake3::Hasher);

impl Parts {
    /// The length goes in front, so that no two lists of parts spell the same bytes.
    fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }
}

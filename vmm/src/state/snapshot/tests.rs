//! What a snapshot file is refused for. The machine is a real one, so these tests need /dev/kvm.

use super::*;
use crate::machine::{Guest, MachineDigest};
use crate::run::MICRO_GUEST;
use lockstep_protocol::record::Input;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn spec(memory_mib: u64) -> MachineSpec {
    MachineSpec {
        vcpus: crate::vcpu::VcpuCount::ONE,
        memory_mib,
        guest: Guest::Micro(MICRO_GUEST),
        cmdline: String::new(),
        devices: vec![],
    }
}

/// A machine after its first exit, and its snapshot in a directory of its own.
fn taken() -> (TempDir, PathBuf, MachineDigest) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.snapshot");
    let mut machine = Machine::build(spec(64)).expect("this test needs a usable /dev/kvm");
    machine.inject(&Input::PowerOn { seed: [7; 32] }).unwrap();
    machine.step().unwrap();
    let mut draft = Draft::begin(&path).unwrap();
    let state = machine.capture().unwrap();
    let bytes = draft.write(&state, machine.memory()).unwrap();
    draft.finish().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
    (dir, path, machine.digest().unwrap())
}

fn refusal(path: &Path) -> String {
    let error = load(path, spec(64)).map(drop).unwrap_err();
    let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{error}{cause}").replace(&path.display().to_string(), "FILE")
}

#[test]
fn a_machine_is_the_same_after_its_way_through_a_file() {
    let (_dir, path, digest) = taken();
    let mut machine = load(&path, spec(64)).unwrap();
    assert_eq!(machine.digest().unwrap(), digest);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "a guest's memory is its owner's business");
}

#[test]
fn a_snapshot_of_another_size_says_which() {
    let (_dir, path, _) = taken();
    let error = load(&path, spec(128)).map(drop).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        cause,
        "The state is of a machine with 64 MiB, this one has 128 MiB; set memory_mib to 64"
    );
}

#[test]
fn other_files_other_versions_and_damaged_ones_are_refused_by_name() {
    let (_dir, path, _) = taken();
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        refusal(&path)
    };
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert_eq!(refused(b"hello"), "FILE is no snapshot of Lockstep");
    assert_eq!(
        refused(&changed(8)),
        "FILE has snapshot format 0, this release reads format 1; start it with the release that wrote it"
    );
    assert_eq!(
        refused(&changed(whole.len() / 2)),
        "The snapshot FILE is damaged; take it anew"
    );
    assert_eq!(
        refused(&changed(100)),
        "The snapshot FILE is damaged; take it anew"
    );
    assert!(
        refused(&whole[..whole.len() - 1])
            .starts_with("Cannot read the snapshot FILE; if it is cut, take it anew")
    );
}

#[test]
fn half_a_snapshot_has_another_name_and_goes_with_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.snapshot");
    let draft = Draft::begin(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(draft);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

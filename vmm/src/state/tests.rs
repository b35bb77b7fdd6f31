//! What the bytes of a state are refused for. The state is a real machine's, so these tests need /dev/kvm.

use super::*;
use crate::machine::{Guest, Machine, MachineSpec};
use crate::run::MICRO_GUEST;
use lockstep_protocol::record::Input;
use proptest::prelude::*;
use std::sync::OnceLock;

/// The state of a machine after its first exit.
fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let spec = MachineSpec {
            vcpus: crate::vcpu::VcpuCount::ONE,
            memory_mib: 64,
            guest: Guest::Micro(MICRO_GUEST),
            cmdline: String::new(),
            devices: vec![],
        };
        let mut machine = Machine::build(spec).expect("this test needs a usable /dev/kvm");
        machine.inject(&Input::PowerOn { seed: [7; 32] }).unwrap();
        machine.step().unwrap();
        machine.capture().unwrap().encode()
    })
}

fn refusal(bytes: &[u8]) -> StateError {
    MachineState::decode(bytes).map(drop).unwrap_err()
}

#[test]
fn a_state_is_the_same_after_its_way_through_bytes() {
    let state = MachineState::decode(bytes()).unwrap();
    assert_eq!(state.position(), Position::new(1));
    assert_eq!(state.memory_mib(), 64);
    assert_eq!(state.encode(), bytes());
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut other = bytes().to_vec();
    other[8] += 1;
    assert_eq!(refusal(&other), StateError::Version { theirs: VERSION + 1 });
}

#[test]
fn a_state_that_is_not_whole_is_refused_wherever_it_is_cut() {
    let whole = bytes();
    assert!((0..whole.len()).all(|end| matches!(
        refusal(&whole[..end]),
        StateError::Foreign | StateError::Cut { .. }
    )));
    assert_eq!(refusal(&[whole, b"!"].concat()), StateError::Longer(1));
}

#[test]
fn a_state_that_claims_more_than_any_machine_is_not_read() {
    let mut large = bytes().to_vec();
    large[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(refusal(&large), StateError::Large(u32::MAX as usize));
}

#[test]
fn a_machine_that_did_not_run_is_not_captured() {
    let spec = MachineSpec {
        vcpus: crate::vcpu::VcpuCount::ONE,
        memory_mib: 64,
        guest: Guest::Micro(MICRO_GUEST),
        cmdline: String::new(),
        devices: vec![],
    };
    let mut machine = Machine::build(spec).expect("this test needs a usable /dev/kvm");
    assert_eq!(
        machine.capture().map(drop).unwrap_err().to_string(),
        "The guest has not made its first exit; ask again in a later window"
    );
}

proptest! {
    #[test]
    fn one_changed_byte_is_noticed(at in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let mut damaged = bytes().to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= change;
        prop_assert!(MachineState::decode(&damaged).is_err());
    }

    #[test]
    fn whatever_the_bytes_are_nothing_panics(body in proptest::collection::vec(any::<u8>(), 0..6000)) {
        prop_assert!(MachineState::decode(&body).is_err());
        let mut dressed = bytes()[..16].to_vec();
        dressed[12..16].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        dressed.extend(blake3::hash(&body).as_bytes());
        dressed.extend(&body);
        let _ = MachineState::decode(&dressed);
    }
}

//! State transfer on this machine's KVM: the recorded run of the micro guest is replayed to some window, copied into a
//! second machine there, and both go on with the rest of the log. They end as the recorded machine did.

use crate::recording::{self, MEMORY_MIB, Outcome, Recording, Replica};
use crate::{CLOCK_PAGE, assert_same};
use lockstep_protocol::ids::{DeviceId, Position};
use lockstep_vmm::machine::{Machine, RestoreError};
use lockstep_vmm::memory::GuestRam;
use lockstep_vmm::state::MachineState;
use lockstep_vmm::state::dirty::Page;
use vm_memory::Bytes;

const DISK: DeviceId = DeviceId::new(1);

#[test]
fn a_machine_copied_while_its_disk_works_ends_as_the_original() {
    recording::with(
        "copies::a_machine_copied_while_its_disk_works_ends_as_the_original",
        |recording| {
            let mut original = Replica::at(recording, half_of(recording), disk_works);

            let copy = copy(&mut original, recording);

            assert!(disk_works(&copy.machine), "the request in flight came along");
            assert_ends_as_recorded(recording, &original.run_to_end().unwrap());
            assert_ends_as_recorded(recording, &copy.run_to_end().unwrap());
        },
    );
}

#[test]
fn a_copy_of_a_copy_ends_as_the_original() {
    recording::with("copies::a_copy_of_a_copy_ends_as_the_original", |recording| {
        let mut original = Replica::at(recording, Position::new(100), |_| true);
        let mut first = copy(&mut original, recording);
        let half = half_of(recording);
        first.run_until(|machine| machine.position() >= half);

        let second = copy(&mut first, recording);

        assert_ends_as_recorded(recording, &second.run_to_end().unwrap());
    });
}

#[test]
fn a_machine_that_is_captured_in_every_window_does_not_notice() {
    recording::with(
        "copies::a_machine_that_is_captured_in_every_window_does_not_notice",
        |recording| {
            let mut original = Replica::at(recording, half_of(recording), |_| true);
            // Runs differ in how many windows they have; a quarter of them is some hundred.
            for _ in 0..recording.outcome.position.get() / 4 {
                let state = original
                    .machine
                    .capture()
                    .expect("this guest makes simple accesses");
                assert_eq!(state.position(), original.machine.position());
                original.step().unwrap();
            }

            assert_same(&recording.outcome, &original.run_to_end().unwrap());
        },
    );
}

#[test]
fn pages_that_were_written_since_they_were_copied_are_named() {
    recording::with(
        "copies::pages_that_were_written_since_they_were_copied_are_named",
        |recording| {
            let mut original = Replica::at(recording, Position::new(100), |_| true);
            let tracker = original.machine.track_writes().expect("this KVM has a dirty log");
            let target = Replica::at(recording, Position::new(1), |_| true).machine;
            copy_pages(&original.machine, target.memory(), &all_pages());

            original.run_until(|machine| machine.position() >= half_of(recording));
            let first = tracker.take().expect("KVM tells");
            copy_pages(&original.machine, target.memory(), &first);
            original.run_until(disk_works);
            let second = tracker.take().expect("KVM tells");
            copy_pages(&original.machine, target.memory(), &second);

            println!(
                "{} pages written in the first round, {} in the second",
                first.len(),
                second.len()
            );
            assert!(
                first.contains(&Page::new(CLOCK_PAGE as u64)),
                "the VMM wrote the clock page"
            );
            assert!(second.len() < first.len() && first.len() < all_pages().len() / 2);
            assert!(first.is_sorted() && second.is_sorted());
            assert_eq!(
                tracker.take().expect("KVM tells"),
                [],
                "nothing was written since"
            );
            let state = through_bytes(&mut original.machine);
            let machine = Machine::restore(recording.spec(MEMORY_MIB), &state).unwrap();
            copy_pages(&target, machine.memory(), &all_pages());
            let copy = original.going_on(machine, recording.records_after(state.position()));
            assert_ends_as_recorded(recording, &copy.run_to_end().unwrap());
        },
    );
}

#[test]
fn one_tracker_at_a_time_and_another_one_after_it() {
    recording::with(
        "copies::one_tracker_at_a_time_and_another_one_after_it",
        |recording| {
            let mut original = Replica::at(recording, Position::new(100), |_| true);
            let first = original.machine.track_writes().expect("this KVM has a dirty log");
            let refused = original.machine.track_writes();
            first.stop();
            let again = original.machine.track_writes().expect("the first one ended");
            original.step().unwrap();

            assert_eq!(
                refused.map(drop).unwrap_err().to_string(),
                "The written pages of this VM are tracked already"
            );
            assert_ne!(again.take().unwrap(), []);
        },
    );
}

#[test]
fn a_state_is_refused_by_a_machine_of_another_size_or_with_another_disk() {
    recording::with(
        "copies::a_state_is_refused_by_a_machine_of_another_size_or_with_another_disk",
        |recording| {
            let mut original = Replica::at(recording, Position::new(100), |_| true);
            let state = through_bytes(&mut original.machine);
            let mut without_disk = recording.spec(MEMORY_MIB);
            without_disk.devices.pop();
            let mut swapped = recording.spec(MEMORY_MIB);
            swapped.devices.reverse();
            let refused = |spec| Machine::restore(spec, &state).map(drop).unwrap_err();

            let larger = refused(recording.spec(MEMORY_MIB * 2));
            assert!(
                matches!(
                    larger,
                    RestoreError::Memory {
                        theirs: 64,
                        ours: 128
                    }
                ),
                "{larger}"
            );
            let smaller = refused(without_disk);
            assert!(
                matches!(smaller, RestoreError::Devices { theirs: 2, ours: 1 }),
                "{smaller}"
            );
            assert!(matches!(refused(swapped), RestoreError::Device(_)));
        },
    );
}

fn half_of(recording: &Recording) -> Position {
    Position::new(recording.outcome.position.get() / 2)
}

fn disk_works(machine: &Machine) -> bool {
    let disk = machine.device(DISK).expect("the recorded machine has a disk");
    disk.rings().iter().any(|ring| ring.inflight_len() > 0)
}

/// A second machine that stands where the first one does, and goes on with the same log.
fn copy(original: &mut Replica, recording: &Recording) -> Replica {
    let state = through_bytes(&mut original.machine);
    let machine =
        Machine::restore(recording.spec(state.memory_mib()), &state).expect("the hosts are the same");
    copy_pages(&original.machine, machine.memory(), &all_pages());
    original.going_on(machine, recording.records_after(state.position()))
}

/// The state as it arrives elsewhere.
fn through_bytes(machine: &mut Machine) -> MachineState {
    let state = machine.capture().expect("this guest makes simple accesses");
    MachineState::decode(&state.encode()).expect("what was encoded can be decoded")
}

fn all_pages() -> Vec<Page> {
    let pages = (MEMORY_MIB << 20) / Page::BYTES as u64;
    (0..pages).map(Page::new).collect()
}

fn copy_pages(from: &Machine, to: &GuestRam, pages: &[Page]) {
    let mut bytes = [0; Page::BYTES];
    for page in pages {
        from.memory().read_slice(&mut bytes, page.address()).unwrap();
        to.write_slice(&bytes, page.address()).unwrap();
    }
}

/// What was printed before the copy was made stays with the original.
fn assert_ends_as_recorded(recording: &Recording, copy: &Outcome) {
    assert!(recording.outcome.console.ends_with(&copy.console));
    let console = recording.outcome.console.clone();
    assert_same(
        &recording.outcome,
        &Outcome {
            console,
            ..copy.clone()
        },
    );
}

//! The real process on a real tap, with the kernel's own UDP as the outside, in a network namespace of its own.
//!
//! Each test runs itself again inside `unshare`.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![allow(clippy::disallowed_types, reason = "the test plays the outside, too")]

mod guest;
mod netns;
mod process;

use std::time::Duration;

use lockstep_protocol::ids::{Head, LogOffset};
use lockstep_protocol::time::Instant;
use lockstep_staging::{ConnectError, Mode, Staged, VmmEnd};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_net_ft::session::TX_QUEUE;

use guest::{Guest, udp_frame};
use netns::Outside;
use process::Process;

/// A protected pair of VMM and device: live, with a lease, and a guest whose queues are set up.
struct Protected {
    vmm: VmmEnd,
    guest: Guest,
    process: Process,
}

fn protected() -> Protected {
    let process = Process::start(&["--mac", "52:54:00:00:00:02"]);
    let (vmm, facts) = process.connect_staging();
    assert_eq!(facts.config[..6], [0x52, 0x54, 0, 0, 0, 2]);
    let guest = Guest::connect(&process, facts.features);
    Protected { vmm, guest, process }
}

impl Protected {
    fn go_live(&self) {
        self.vmm.gate().publish_lease(Instant::FOREVER);
        self.vmm.gate().set_mode(Mode::Live);
    }

    /// The guest queues a frame with this payload, and the VMM orders it.
    fn transmit(&mut self, payload: &[u8], needs: u64) {
        let head = self.guest.write_tx_chain(&udp_frame(payload));
        self.order(head, needs);
        assert_eq!(
            self.next_completion(),
            Staged::Returned {
                queue: TX_QUEUE,
                count: 1
            }
        );
    }

    fn order(&mut self, head: Head, needs: u64) {
        let order = lockstep_staging::Order {
            queue: TX_QUEUE,
            head,
            needs: LogOffset::new(needs),
        };
        self.vmm.push_order(order).unwrap();
        self.vmm.flush_orders();
    }

    fn next_completion(&mut self) -> Staged {
        let mut bytes = Vec::new();
        process::until("a completion", || self.vmm.pop_completion(&mut bytes).unwrap())
    }

    fn next_frame(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        process::until("a frame", || self.vmm.pop_frame(&mut bytes).unwrap());
        bytes
    }

    fn held(&self) -> u64 {
        self.vmm.gate().snapshot().held
    }
}

#[test]
fn a_frame_leaves_only_when_its_cause_is_acked() {
    netns::inside("a_frame_leaves_only_when_its_cause_is_acked", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        pair.go_live();
        pair.transmit(b"first", 5);
        pair.transmit(b"second", 7);
        process::until("both to be held", || (pair.held() == 2).then_some(()));
        assert!(outside.is_silent());

        pair.vmm.gate().publish_acked(LogOffset::new(5));
        assert_eq!(outside.hear(), b"first");
        process::until("one to be released", || (pair.held() == 1).then_some(()));
        assert!(outside.is_silent());

        pair.vmm.gate().publish_acked(LogOffset::new(8));
        assert_eq!(outside.hear(), b"second");
    });
}

#[test]
fn an_acked_frame_waits_for_the_lease() {
    netns::inside("an_acked_frame_waits_for_the_lease", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        pair.vmm.gate().set_mode(Mode::Live);
        pair.vmm.gate().publish_acked(LogOffset::new(100));
        // The announcement waits as well: nothing leaves without a lease.
        pair.transmit(b"late", 5);
        process::until("frames to be held", || (pair.held() == 2).then_some(()));
        assert!(outside.is_silent());
        assert_eq!(netns::frames_sent(&pair.process.tap), 0);

        pair.vmm.gate().publish_lease(Instant::FOREVER);
        assert_eq!(outside.hear(), b"late");
    });
}

#[test]
fn a_frame_from_the_outside_is_staged_once_the_host_is_live() {
    netns::inside("a_frame_from_the_outside_is_staged_once_the_host_is_live", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        outside.say(b"to the backup");
        process::until("the backup to read it", || {
            netns::tap_queue_is_empty(&pair.process.tap).then_some(())
        });
        pair.go_live();
        // Going live announces; when the announcement is out, the mode is followed.
        process::until("the announcement", || {
            (netns::frames_sent(&pair.process.tap) > 0).then_some(())
        });
        outside.say(b"to the primary");
        let frame = pair.next_frame();
        assert!(frame.ends_with(b"to the primary"), "{frame:?}");
        assert_eq!(frame[10..12], [1, 0], "one buffer");
        assert!(!pair.vmm.has_inputs());
    });
}

#[test]
fn going_live_announces_the_guest_several_times() {
    netns::inside("going_live_announces_the_guest_several_times", || {
        let pair = protected();
        let _outside = Outside::on(&pair.process);
        pair.go_live();
        process::until("four announcements", || {
            (netns::frames_sent(&pair.process.tap) == 4).then_some(())
        });
    });
}

#[test]
fn a_halted_host_drops_what_it_holds_and_its_carrier() {
    netns::inside("a_halted_host_drops_what_it_holds_and_its_carrier", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        pair.go_live();
        pair.transmit(b"never", 5);
        process::until("it to be held", || (pair.held() == 1).then_some(()));
        pair.vmm.gate().set_mode(Mode::Halted);
        process::until("it to be dropped", || (pair.held() == 0).then_some(()));
        pair.vmm.gate().publish_acked(LogOffset::new(100));
        // A later order is returned as ever, and its frame goes nowhere.
        pair.transmit(b"nor this", 6);
        process::until("the tap to close", || {
            (!netns::exists(&pair.process.tap)).then_some(())
        });
        assert!(outside.is_silent());
        assert_eq!(pair.vmm.gate().snapshot().held, 0);
    });
}

#[test]
fn a_device_that_was_halted_serves_the_next_vmm() {
    netns::inside("a_device_that_was_halted_serves_the_next_vmm", || {
        let pair = protected();
        pair.vmm.gate().set_mode(Mode::Halted);
        process::until("the tap to close", || {
            (!netns::exists(&pair.process.tap)).then_some(())
        });
        let Protected { vmm, guest, process } = pair;
        drop((vmm, guest));

        let (vmm, facts) = process.connect_staging();
        let guest = Guest::connect(&process, facts.features);
        let mut pair = Protected { vmm, guest, process };
        let outside = Outside::on(&pair.process);
        pair.go_live();
        pair.transmit(b"again", 0);
        assert_eq!(outside.hear(), b"again");
    });
}

#[test]
fn held_frames_die_with_the_vmm_and_the_next_one_is_served() {
    netns::inside("held_frames_die_with_the_vmm_and_the_next_one_is_served", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        pair.go_live();
        pair.transmit(b"lost", 5);
        let Protected { vmm, guest, process } = pair;
        drop((vmm, guest));

        let (vmm, facts) = process.connect_staging();
        let guest = Guest::connect(&process, facts.features);
        let mut pair = Protected { vmm, guest, process };
        pair.go_live();
        pair.vmm.gate().publish_acked(LogOffset::new(100));
        pair.transmit(b"kept", 5);
        assert_eq!(outside.hear(), b"kept");
        assert!(outside.is_silent());
    });
}

#[test]
fn a_chain_that_is_no_frame_is_returned_and_nothing_leaves() {
    netns::inside("a_chain_that_is_no_frame_is_returned_and_nothing_leaves", || {
        let mut pair = protected();
        let outside = Outside::on(&pair.process);
        pair.go_live();
        pair.order(Head::new(60_000), 0);
        assert_eq!(
            pair.next_completion(),
            Staged::Returned {
                queue: TX_QUEUE,
                count: 1
            }
        );
        let head = pair.guest.write_tx_chain(&[0; 4]);
        pair.order(head, 0);
        assert_eq!(
            pair.next_completion(),
            Staged::Returned {
                queue: TX_QUEUE,
                count: 1
            }
        );
        pair.transmit(b"still here", 0);
        assert_eq!(outside.hear(), b"still here");
        assert!(outside.is_silent());
    });
}

#[test]
fn a_protected_guest_takes_the_device_for_itself() {
    netns::inside("a_protected_guest_takes_the_device_for_itself", || {
        let pair = protected();
        let facts = process::vmm_facts();
        let second = VmmEnd::connect(&pair.process.staging, &facts, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(&second, ConnectError::Refused { .. }));
        assert!(second.to_string().contains("Another VMM"), "{second}");
    });
}

#[test]
fn a_plain_front_ends_guest_talks_both_ways() {
    netns::inside("a_plain_front_ends_guest_talks_both_ways", || {
        let process = Process::start(&[]);
        let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
        let outside = Outside::on(&process);
        guest.offer_rx_buffers(4);
        guest.transmit_plain(&udp_frame(b"out"));
        assert_eq!(outside.hear(), b"out");
        process::until("the frame to be completed", || {
            (guest.tx_used() == 1).then_some(())
        });

        outside.say(b"in");
        let frame = process::until("a frame", || guest.received());
        assert!(frame.ends_with(b"in"), "{frame:?}");
        assert_eq!(frame[10..12], [1, 0]);
    });
}

#[test]
fn a_plain_guest_that_starts_over_has_its_network_again() {
    netns::inside("a_plain_guest_that_starts_over_has_its_network_again", || {
        let process = Process::start(&[]);
        let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
        let outside = Outside::on(&process);
        guest.transmit_plain(&udp_frame(b"before"));
        assert_eq!(outside.hear(), b"before");

        guest.restart();
        guest.transmit_plain(&udp_frame(b"after"));
        assert_eq!(outside.hear(), b"after");
    });
}

#[test]
fn an_old_driver_talks_both_ways_with_its_short_header() {
    netns::inside("an_old_driver_talks_both_ways_with_its_short_header", || {
        let process = Process::start(&[]);
        let mut guest = Guest::connect(&process, 0);
        let outside = Outside::on(&process);
        guest.offer_rx_buffers(4);
        guest.transmit_plain(&udp_frame(b"out")[2..]);
        assert_eq!(outside.hear(), b"out");

        outside.say(b"in");
        let frame = process::until("a frame", || guest.received());
        assert_eq!(frame[10..16], [0xff; 6], "the frame begins behind ten bytes");
        assert!(frame.ends_with(b"in"), "{frame:?}");
    });
}

#[test]
fn a_front_end_after_a_vmm_that_left_before_it_came_has_a_network() {
    netns::inside(
        "a_front_end_after_a_vmm_that_left_before_it_came_has_a_network",
        || {
            let process = Process::start(&[]);
            let outside = Outside::on(&process);
            drop(process.connect_staging());
            let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
            guest.transmit_plain(&udp_frame(b"plain"));
            assert_eq!(outside.hear(), b"plain");
        },
    );
}

#[test]
fn a_front_end_is_told_of_one_pair_of_queues() {
    netns::inside("a_front_end_is_told_of_one_pair_of_queues", || {
        let process = Process::start(&[]);
        let mut front_end = Frontend::connect(&process.socket, 2).unwrap();
        front_end.set_owner().unwrap();
        front_end.get_features().unwrap();
        let offered = front_end.get_protocol_features().unwrap();
        // QEMU reads the number of queues that goes with it as a number of pairs.
        assert!(!offered.contains(VhostUserProtocolFeatures::MQ), "{offered:?}");
    });
}

#[test]
fn a_connector_that_never_becomes_a_vmm_leaves_a_line_with_the_cause() {
    netns::inside(
        "a_connector_that_never_becomes_a_vmm_leaves_a_line_with_the_cause",
        || {
            let process = Process::start(&[]);
            process.connect_and_leave();
            let line = process::until("a line about it", || process.said("did not complete the set-up"));
            assert!(line.contains("unexpected end of file"), "{line}");
        },
    );
}

#[test]
fn a_front_end_may_leave_and_another_come() {
    netns::inside("a_front_end_may_leave_and_another_come", || {
        let process = Process::start(&[]);
        let outside = Outside::on(&process);
        drop(Guest::connect(&process, guest::PLAIN_FEATURES));
        let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
        guest.transmit_plain(&udp_frame(b"second"));
        assert_eq!(outside.hear(), b"second");
    });
}

#[test]
fn front_ends_that_come_and_go_leave_nothing_behind() {
    netns::inside("front_ends_that_come_and_go_leave_nothing_behind", || {
        let process = Process::start(&[]);
        let before = process.open_descriptors();
        for _ in 0..20 {
            drop(Guest::connect(&process, guest::PLAIN_FEATURES));
        }
        // What the last connections had is closed a moment later; one descriptor left behind by each would stay.
        process::until("descriptors to be closed", || {
            (process.open_descriptors() < before + 20).then_some(())
        });
    });
}

#[test]
fn the_front_end_after_a_tap_that_vanished_gets_a_new_one() {
    netns::inside("the_front_end_after_a_tap_that_vanished_gets_a_new_one", || {
        let process = Process::start(&[]);
        let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
        guest.offer_rx_buffers(1);
        netns::remove(&process.tap);
        process::until("the tap to be given up", || process.has_no_tap().then_some(()));
        drop(guest);

        let mut guest = Guest::connect(&process, guest::PLAIN_FEATURES);
        process::until("a new tap", || netns::exists(&process.tap).then_some(()));
        let outside = Outside::on(&process);
        guest.transmit_plain(&udp_frame(b"again"));
        assert_eq!(outside.hear(), b"again");
    });
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    netns::inside("a_file_in_the_place_of_the_socket_is_left_alone", || {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("vhost.sock");
        std::fs::write(&place, "precious").unwrap();
        let (status, said) =
            process::run_to_end(&["--socket", place.to_str().unwrap(), "--tap", process::TAP]);
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("is not a socket"), "{said}");
        assert_eq!(std::fs::read(&place).unwrap(), b"precious");
    });
}

#[test]
fn a_path_that_leaves_no_room_for_the_socket_beside_it_is_named_at_once() {
    netns::inside(
        "a_path_that_leaves_no_room_for_the_socket_beside_it_is_named_at_once",
        || {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("s");
            let long = format!("{:s<105}", place.to_str().unwrap());
            let (status, said) = process::run_to_end(&["--socket", &long, "--tap", process::TAP]);
            assert_eq!(status.code(), Some(1));
            assert!(said.contains(".inner"), "{said}");
        },
    );
}

#[test]
fn asked_to_end_it_ends_well_and_takes_its_sockets_along() {
    netns::inside("asked_to_end_it_ends_well_and_takes_its_sockets_along", || {
        let mut process = Process::start(&[]);
        assert!(process.terminate().success());
        assert!(!process.socket.exists() && !process.staging.exists());
    });
}

#[test]
fn what_it_cannot_do_it_says_in_one_sentence() {
    let (status, said) = process::run_to_end(&[
        "--socket",
        "/tmp/unused.sock",
        "--tap",
        "a-name-too-long-for-a-tap",
    ]);
    assert_eq!(status.code(), Some(1));
    assert!(
        said.contains("cannot be the name of a network interface"),
        "{said}"
    );
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}

#[test]
fn a_tap_in_use_is_named() {
    netns::inside("a_tap_in_use_is_named", || {
        let first = Process::start(&[]);
        let other = first.dir.path().join("other.sock");
        let (status, said) =
            process::run_to_end(&["--socket", other.to_str().unwrap(), "--tap", process::TAP]);
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("Another process uses the tap"), "{said}");
    });
}

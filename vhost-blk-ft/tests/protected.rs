//! The process under our VMM: nothing changes on the disk before the gate lets it, and guest memory is never written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod world;

use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep_protocol::{Instant, LogOffset};
use lockstep_staging::{Mode, boottime};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use vhost::vhost_user::Frontend;
use world::vmm::{Vmm, staging};
use world::{Device, FLUSH, GET_ID, Guest, HEADS, IN, OUT, PATIENCE, eventually};

#[test]
fn a_read_is_answered_at_once_and_guest_memory_stays_as_it_was() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let first = vmm.guest.request(0, IN, 5, &[], 1024);
    let before = vmm.guest.snapshot();
    vmm.order(first, u64::MAX);
    assert_eq!(
        vmm.completion(),
        (first, [vec![5; 512], vec![6; 512], vec![0]].concat())
    );
    assert!(vmm.guest.snapshot() == before);
}

#[test]
fn the_largest_reads_come_whole_and_those_without_room_wait_for_it() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let heads: Vec<u16> = (0..HEADS)
        .map(|head| vmm.guest.request(head, IN, 0, &[], 1 << 20))
        .collect();
    heads.iter().for_each(|first| vmm.order(*first, 0));
    let whole = [device.on_disk(0, 1 << 20), vec![0]].concat();
    let answers: Vec<(u16, bool)> = heads
        .iter()
        .map(|_| vmm.completion())
        .map(|(who, bytes)| (who, bytes == whole))
        .collect();
    let expected: Vec<(u16, bool)> = heads.iter().map(|first| (*first, true)).collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_write_reaches_the_disk_when_its_cause_is_acked_and_not_before() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 4);
    let first = vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.wait_for_held(1);
    assert_eq!(vmm.gate.snapshot().waiting_for, Some(LogOffset::new(5)));
    assert_eq!(vmm.read(1, 3), [3; 512]);
    assert_eq!(device.on_disk(3, 512), [3; 512]);

    vmm.gate.publish_acked(LogOffset::new(5));
    assert_eq!(vmm.completion(), (first, vec![0]));
    assert_eq!(device.on_disk(3, 512), [0xaa; 512]);
    assert_eq!(vmm.gate.snapshot().held, 0);
}

#[test]
fn a_held_write_keeps_the_bytes_it_was_taken_with() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    vmm.write(0, 3, &[0xaa; 512], 1);
    vmm.wait_for_held(1);
    vmm.guest.request(0, OUT, 9, &[0xbb; 512], 0);
    vmm.gate.publish_acked(LogOffset::new(1));
    vmm.completion();
    assert_eq!(
        (device.on_disk(3, 512), device.on_disk(9, 512)),
        (vec![0xaa; 512], vec![9; 512])
    );
}

#[test]
fn an_acked_write_waits_while_the_lease_is_over() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 9);
    vmm.gate.publish_lease(boottime());
    let first = vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.wait_for_held(1);
    vmm.gate.publish_acked(LogOffset::new(10));
    assert_eq!(vmm.read(1, 3), [3; 512]);
    assert_eq!(device.on_disk(3, 512), [3; 512]);

    vmm.gate.publish_lease(boottime() + Duration::from_secs(60));
    assert_eq!(vmm.completion(), (first, vec![0]));
    assert_eq!(device.on_disk(3, 512), [0xaa; 512]);
}

#[test]
fn a_host_that_halted_never_writes_again_whatever_it_is_told() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.wait_for_held(1);
    vmm.gate.set_mode(Mode::Halted);
    vmm.wait_for_held(0);

    vmm.gate.publish_acked(LogOffset::MAX);
    vmm.gate.set_mode(Mode::Live);
    vmm.write(1, 4, &[0xbb; 512], 0);
    drop(vmm);
    // The next VMM is served only after everything of the one before it was looked at.
    let mut next = Vmm::live(&device, u64::MAX);
    assert_eq!((next.read(0, 3), next.read(0, 4)), (vec![3; 512], vec![4; 512]));
    assert_eq!(device.on_disk(3, 1024), [[3; 512], [4; 512]].concat());
}

#[test]
fn a_backup_takes_nothing_until_it_is_live_and_then_everything() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::connect(&device);
    vmm.gate.publish_acked(LogOffset::MAX);
    vmm.gate.publish_lease(Instant::FOREVER);
    let first = vmm.write(0, 3, &[0xaa; 512], 0);
    eventually("the order to be taken", || vmm.end.prepare_sleep().then_some(()));
    assert_eq!(
        (device.on_disk(3, 512), vmm.end.has_inputs()),
        (vec![3; 512], false)
    );

    vmm.gate.set_mode(Mode::Live);
    assert_eq!(vmm.completion(), (first, vec![0]));
    assert_eq!(device.on_disk(3, 512), [0xaa; 512]);
}

#[test]
fn a_flush_waits_behind_held_writes_and_is_answered_at_once_without_them() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let flush = vmm.guest.request(1, FLUSH, 0, &[], 0);
    vmm.order(flush, u64::MAX);
    assert_eq!(vmm.completion(), (flush, vec![0]));

    let write = vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.order(flush, 0);
    vmm.wait_for_held(2);
    vmm.gate.publish_acked(LogOffset::new(5));
    assert_eq!(
        (vmm.completion(), vmm.completion()),
        ((write, vec![0]), (flush, vec![0]))
    );
}

#[test]
fn a_vmm_that_sleeps_is_woken_once_for_a_write_and_the_flush_behind_it() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let write = vmm.write(0, 3, &[0xaa; 512], 5);
    let flush = vmm.guest.request(1, FLUSH, 0, &[], 0);
    vmm.order(flush, 0);
    vmm.wait_for_held(2);
    eventually("the VMM to sleep", || vmm.end.prepare_sleep().then_some(()));

    vmm.gate.publish_acked(LogOffset::new(5));

    vmm.wait_for_doorbell();
    assert_eq!(
        [vmm.staged_completion(), vmm.staged_completion()],
        [Some((write, vec![0])), Some((flush, vec![0]))]
    );
}

#[test]
fn a_request_that_is_wrong_is_completed_all_the_same() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let beyond = vmm.guest.request(0, OUT, 1 << 40, &[1; 512], 0);
    vmm.order(beyond, 0);
    assert_eq!(vmm.completion(), (beyond, vec![1]));
    let failed_read = vmm.guest.request(0, IN, 1 << 40, &[], 512);
    vmm.order(failed_read, 0);
    assert_eq!(vmm.completion(), (failed_read, [vec![0; 512], vec![1]].concat()));
    vmm.order(63, 0);
    assert_eq!(vmm.completion(), (63, vec![]));
    let name = vmm.guest.request(0, GET_ID, 0, &[], 24);
    vmm.order(name, 0);
    assert_eq!(vmm.completion().1, b"lockstep\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_write_that_finds_the_file_system_full_is_completed_with_an_error_and_the_next_one_goes_on() {
    let device = Device::start_on_a_small_file_system(true, &[]);
    let mut vmm = Vmm::live(&device, u64::MAX);
    let fits = vmm.write(0, 0, &[0xaa; 4096], 0);
    let too_much: Vec<u16> = (1..3)
        .map(|head| vmm.write(head, 2048, &vec![0xbb; 1 << 20], 0))
        .collect();
    let flush = vmm.guest.request(3, FLUSH, 0, &[], 0);
    vmm.order(flush, 0);
    assert_eq!(vmm.completion(), (fits, vec![0]));
    assert_eq!(vmm.completion(), (too_much[0], vec![1]));
    assert_eq!(vmm.completion(), (too_much[1], vec![1]));
    assert_eq!(vmm.completion(), (flush, vec![0]));
    assert_eq!(vmm.read(4, 0), [0xaa; 512]);
}

#[test]
fn a_head_that_is_in_flight_is_not_taken_twice() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, 0);
    let first = vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.order(first, 5);
    assert_eq!(vmm.read(1, 9), [9; 512]);
    assert_eq!(vmm.gate.snapshot().held, 1);
    vmm.gate.publish_acked(LogOffset::new(5));
    assert_eq!(vmm.completion().0, first);
    assert_eq!(vmm.read(0, 3), [0xaa; 512]);
}

#[test]
fn a_write_ordered_again_by_the_successor_ends_the_same() {
    let device = Device::start(true, &[]);
    let mut primary = Vmm::live(&device, u64::MAX);
    primary.write(0, 3, &[0xaa; 1024], 0);
    primary.completion();
    drop(primary);
    let mut successor = Vmm::live(&device, u64::MAX);
    let first = successor.write(0, 3, &[0xaa; 1024], 0);
    assert_eq!(successor.completion(), (first, vec![0]));
    assert_eq!(
        device.on_disk(2, 2048),
        [vec![2; 512], vec![0xaa; 1024], vec![5; 512]].concat()
    );
}

#[test]
fn the_vmm_learns_the_disk_and_a_second_vmm_is_sent_away() {
    let device = Device::start(true, &["--read-only"]);
    let vmm = Vmm::live(&device, 0);
    assert_eq!(vmm.facts.config[..8], world::SECTORS.to_le_bytes());
    assert_eq!(
        vmm.facts.features >> 5 & 1,
        1,
        "the guest is told that it may not write"
    );
    let refused = staging(device.folder.path()).unwrap_err();
    assert!(refused.to_string().contains("has a VMM already"), "{refused}");
}

#[test]
fn a_front_end_without_a_vmm_waits_and_the_log_says_once_what_to_do() {
    let device = Device::start(true, &[]);
    let mut front_end = device.front_end();
    let mut guest = Guest::new();
    guest.attach(&mut front_end, true);
    let first = guest.request(0, IN, 5, &[], 512);
    guest.offer(first);
    let line = eventually("a line about it", || device.said("waits for its disk").pop());
    assert!(line.contains("start this without --staging"), "{line}");

    // When the last of these kicks is heard, the first was dealt with.
    guest.claim_offered(2);
    guest.claim_offered(3);
    assert_eq!(device.said("waits for its disk").len(), 1);
    assert_eq!(guest.used_index(), 0);
}

#[test]
fn a_connector_that_never_becomes_a_vmm_leaves_a_line_with_the_cause() {
    let device = Device::start(true, &[]);
    let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let place = SocketAddrUnix::new(device.path("staging.sock")).unwrap();
    eventually("the staging socket", || connect(&stranger, &place).ok());
    drop(stranger);
    let line = eventually("a line about it", || {
        device.said("did not complete the set-up").pop()
    });
    assert!(line.contains("unexpected end of file"), "{line}");
}

#[test]
fn a_vmm_that_is_killed_takes_its_held_writes_with_it() {
    let device = Device::start(true, &[]);
    let mut vmm = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_vmm_that_is_killed", "--ignored", "--nocapture"])
        .env("DEVICE_FOLDER", device.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(wait_for_word(&mut vmm));
    vmm.kill().unwrap();
    vmm.wait().unwrap();

    let mut next = eventually("the dead VMM's place", || {
        staging(device.folder.path()).ok().map(drop)?;
        Some(Vmm::live(&device, u64::MAX))
    });
    assert_eq!(next.read(0, 3), [3; 512]);
    assert_eq!(device.on_disk(3, 512), [3; 512]);
}

/// Reads what the child says until it says that its write is held.
fn wait_for_word(child: &mut std::process::Child) -> bool {
    use std::io::{BufRead, BufReader};
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    lines.map_while(Result::ok).any(|line| line.contains("held"))
}

#[test]
#[ignore = "runs as the victim of a_vmm_that_is_killed_takes_its_held_writes_with_it"]
fn the_vmm_that_is_killed() {
    let folder = std::path::PathBuf::from(std::env::var_os("DEVICE_FOLDER").unwrap());
    let front_end = eventually("the socket", || {
        Frontend::connect(folder.join("blk.sock"), 8).ok()
    });
    let mut vmm = Vmm::connect_at(&folder, front_end);
    vmm.gate.publish_lease(Instant::FOREVER);
    vmm.gate.set_mode(Mode::Live);
    vmm.write(0, 3, &[0xaa; 512], 5);
    vmm.wait_for_held(1);
    println!("held");
    std::thread::sleep(PATIENCE);
}

#[test]
#[ignore = "a measurement: run it in release with --ignored --nocapture"]
fn round_trips_from_order_to_completion() {
    let device = Device::start(true, &[]);
    let mut vmm = Vmm::live(&device, u64::MAX);
    let read = vmm.guest.request(0, IN, 5, &[], 512);
    measure(&mut vmm, "read 512", &[read]);
    let write = vmm.guest.request(1, OUT, 6, &[0xaa; 512], 0);
    measure(&mut vmm, "write 512", &[write]);
    let flush = vmm.guest.request(2, FLUSH, 0, &[], 0);
    measure(&mut vmm, "flush of nothing", &[flush]);
    measure(&mut vmm, "write 512, then flush", &[write, flush]);
    let large = vmm.guest.request(3, OUT, 8, &vec![0xbb; 128 << 10], 0);
    measure(&mut vmm, "write 128 KiB", &[large]);
    let large = vmm.guest.request(4, IN, 8, &[], 128 << 10);
    measure(&mut vmm, "read 128 KiB", &[large]);
}

fn measure(vmm: &mut Vmm, what: &str, heads: &[u16]) {
    let mut bytes = Vec::new();
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let begin = std::time::Instant::now();
            for first in heads {
                vmm.order(*first, 0);
                while vmm.end.pop_completion(&mut bytes).unwrap().is_none() {
                    std::hint::spin_loop();
                }
            }
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("{what}: p50 {:?}, p99 {:?}", times[500], times[990]);
}

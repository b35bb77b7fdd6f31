//! The process as an ordinary vhost-user-blk back-end: real process, real front-end, a real ring.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod world;

use nix::sys::signal::Signal;
use vhost::VhostBackend;
use vm_memory::{Address, Bytes, GuestAddress};
use world::{
    DISCARD, Device, FLUSH, GET_ID, Guest, IN, MEMORY, OUT, QUEUE_SIZE, SECTORS, WRITE_ZEROES, command,
    complaint, config, eventually,
};

fn plain(more: &[&str]) -> (Device, vhost::vhost_user::Frontend, Guest) {
    let device = Device::start(false, more);
    let mut front_end = device.front_end();
    let guest = Guest::new();
    guest.attach(&mut front_end, true);
    (device, front_end, guest)
}

#[test]
fn a_guest_reads_writes_and_flushes_its_disk() {
    let (device, _front_end, mut guest) = plain(&[]);
    assert_eq!(guest.ask(IN, 5, &[], 1024), (0, 1025));
    assert_eq!(guest.data(0, 1024), [[5; 512], [6; 512]].concat());

    assert_eq!(guest.ask(OUT, 9, &[0xab; 1536], 0), (0, 1));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), (0, 1));
    assert_eq!(
        device.on_disk(8, 2560),
        [vec![8; 512], vec![0xab; 1536], vec![12; 512]].concat()
    );
    assert_eq!(guest.ask(IN, 9, &[], 512), (0, 513));
    assert_eq!(guest.data(0, 512), [0xab; 512]);
}

#[test]
fn a_guest_discards_zeroes_and_asks_for_the_name() {
    let (device, _front_end, mut guest) = plain(&["--serial", "disk-7"]);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    };
    assert_eq!(guest.ask(WRITE_ZEROES, 0, &range(3, 2, 0), 0), (0, 1));
    assert_eq!(guest.ask(WRITE_ZEROES, 0, &range(16, 8, 1), 0), (0, 1));
    assert_eq!(guest.ask(DISCARD, 0, &range(100, 8, 0), 0), (0, 1));
    assert_eq!(
        device.on_disk(2, 2048),
        [vec![2; 512], vec![0; 1024], vec![5; 512]].concat()
    );
    assert_eq!(device.on_disk(16, 4096), [0; 4096]);
    assert_eq!(guest.ask(GET_ID, 0, &[], 20), (0, 21));
    assert_eq!(&guest.data(0, 20), b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_wrong_request_is_told_so_and_the_next_one_works() {
    let (_device, _front_end, mut guest) = plain(&[]);
    assert_eq!(guest.ask(IN, SECTORS, &[], 512).0, 1);
    assert_eq!(guest.ask(77, 0, &[], 0).0, 2);
    let first = guest.request(0, OUT, 0, &[1; 512], 0);
    guest.offer(first + 1);
    assert_eq!(guest.next_used(), (u32::from(first) + 1, 1));
    guest.offer(999);
    guest.offer(first);
    assert_eq!(guest.next_used().0, u32::from(first));
    assert_eq!(guest.ask(IN, 0, &[], 512).0, 0);
}

#[test]
fn a_read_only_disk_stays_as_it_was() {
    let (device, _front_end, mut guest) = plain(&["--read-only"]);
    assert_eq!(guest.ask(OUT, 1, &[9; 512], 0).0, 1);
    assert_eq!(device.on_disk(1, 512), [1; 512]);
}

#[test]
fn a_front_end_learns_the_size_of_the_disk_and_its_limits() {
    let device = Device::start(false, &[]);
    let mut front_end = device.front_end();
    front_end_setup(&mut front_end);
    let space = config(&mut front_end, 96);
    assert_eq!(space[..8], SECTORS.to_le_bytes());
    assert_eq!(space[12..16], 126_u32.to_le_bytes());
    assert_eq!(space[20..24], 512_u32.to_le_bytes());
    assert_eq!(config(&mut front_end, 60), space[..60]);
}

fn front_end_setup(front_end: &mut vhost::vhost_user::Frontend) {
    use vhost::VhostBackend;
    use vhost::vhost_user::VhostUserFrontend;
    front_end.set_owner().unwrap();
    front_end.get_features().unwrap();
    let protocol = front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(protocol).unwrap();
}

#[test]
fn a_front_end_that_left_is_followed_by_the_next_and_nothing_piles_up() {
    let (device, front_end, guest) = plain(&[]);
    drop((front_end, guest));
    let after = |device: &Device| {
        let mut front_end = device.front_end();
        let mut guest = Guest::new();
        guest.attach(&mut front_end, true);
        assert_eq!(guest.ask(IN, 4, &[], 512).0, 0);
        device.open_descriptors()
    };
    let second = after(&device);
    let counts: Vec<usize> = (0..20).map(|_| after(&device)).collect();
    assert!(
        counts.iter().all(|count| *count <= second + 2),
        "{second} then {counts:?}"
    );
}

#[test]
fn a_process_for_one_front_end_leaves_with_it() {
    let (mut device, front_end, _guest) = plain(&["--once"]);
    drop(front_end);
    assert!(device.wait_for_exit().success());
    assert!(!device.path("blk.sock").exists());
}

#[test]
fn a_process_that_cannot_take_in_its_front_end_does_not_pretend_that_it_did() {
    let mut device = Device::start(false, &["--once"]);
    eventually("the process to be ready", || device.has_a_worker().then_some(()));
    device.take_its_descriptors();
    let _front_end = device.front_end();
    assert!(!device.wait_for_exit().success());
    let said = device.said("vhost-blk-ft: ");
    assert!(said[0].contains("Cannot take in a front-end"), "{said:?}");
}

#[test]
fn a_guest_that_offers_more_than_its_ring_holds_keeps_the_process_from_nothing() {
    let (mut device, front_end, guest) = plain(&["--once"]);
    guest.claim_offered(QUEUE_SIZE + 1);
    drop(front_end);
    assert!(device.wait_for_exit().success());
}

#[test]
fn a_driver_that_starts_over_after_it_broke_its_ring_is_served() {
    let (_device, mut front_end, mut guest) = plain(&[]);
    guest.claim_offered(QUEUE_SIZE + 1);
    assert_eq!(front_end.get_vring_base(0).unwrap(), 0);
    guest
        .memory
        .write_obj(0_u16, guest.available.unchecked_add(2))
        .unwrap();
    guest.set_up_queue(&mut front_end, true);
    assert_eq!(guest.ask(IN, 4, &[], 512).0, 0);
}

#[test]
fn a_guest_whose_ring_ends_beyond_its_memory_keeps_the_process_from_nothing() {
    let mut device = Device::start(false, &["--once"]);
    let mut front_end = device.front_end();
    let mut guest = Guest::new();
    // Flags and index lie inside, and not one entry.
    guest.available = GuestAddress(MEMORY as u64 - 4);
    guest.attach(&mut front_end, true);
    guest.claim_offered(1);
    drop(front_end);
    assert!(device.wait_for_exit().success());
}

#[test]
fn a_process_told_to_leave_leaves_cleanly() {
    let (mut device, _front_end, mut guest) = plain(&[]);
    assert_eq!(guest.ask(OUT, 1, &[9; 512], 0).0, 0);
    device.signal(Signal::SIGTERM);
    assert!(device.wait_for_exit().success());
    assert!(!device.path("blk.sock").exists());
    assert_eq!(device.on_disk(1, 512), [9; 512]);
}

#[test]
fn a_process_that_cannot_begin_says_why_in_one_sentence() {
    let (device, _front_end, _guest) = plain(&[]);
    let folder = device.folder.path();
    let other = |args: &[&str]| {
        let mut command = command(folder, false);
        command.args(args);
        complaint(command)
    };
    let socket = folder.join("other.sock");
    assert!(complaint(command(folder, false)).contains("in use by another process"));

    let elsewhere = tempfile::TempDir::new().unwrap();
    assert!(complaint(command(elsewhere.path(), false)).contains("There is no disk at"));
    std::fs::write(elsewhere.path().join("disk.img"), [0; 100]).unwrap();
    assert!(complaint(command(elsewhere.path(), false)).contains("100 bytes"));
    std::fs::write(elsewhere.path().join("disk.img"), [0; 512]).unwrap();
    std::fs::write(elsewhere.path().join("blk.sock"), "precious").unwrap();
    assert!(complaint(command(elsewhere.path(), false)).contains("is not a socket"));
    assert_eq!(
        std::fs::read(elsewhere.path().join("blk.sock")).unwrap(),
        b"precious"
    );
    assert!(other(&["--serial", "much-too-long-for-a-serial"]).contains("at most 20 bytes"));
    assert!(other(&["--mode", "mirror"]).contains("name the --staging socket"));
    assert!(!socket.exists());
}

#[test]
fn a_socket_in_use_is_not_taken_away() {
    let (device, _front_end, mut guest) = plain(&["--read-only"]);
    let mut second = command(device.folder.path(), false);
    second.arg("--read-only");
    assert!(complaint(second).contains("Another process listens at"));
    assert_eq!(guest.ask(IN, 4, &[], 512).0, 0);
}

#[test]
fn a_full_file_system_fails_writes_loses_nothing_and_takes_writes_again() {
    let device = Device::start_on_a_small_file_system(false, &[]);
    let mut front_end = device.front_end();
    let mut guest = Guest::new();
    guest.attach(&mut front_end, true);
    let half = vec![0xaa; 512 << 10];
    assert_eq!(guest.ask(OUT, 0, &half, 0), (0, 1));
    assert_eq!(guest.ask(OUT, 2048, &[0xbb; 1 << 20], 0), (1, 1));
    assert_eq!(guest.ask(OUT, 4096, &[0xcc; 1 << 20], 0), (1, 1));
    assert_eq!(guest.ask(IN, 0, &[], 512 << 10).0, 0);
    assert_eq!(guest.data(0, 512 << 10), half);

    let all = [&2048_u64.to_le_bytes()[..], &6144_u32.to_le_bytes(), &[0; 4]].concat();
    assert_eq!(guest.ask(DISCARD, 0, &all, 0), (0, 1));
    assert_eq!(guest.ask(OUT, 4096, &[0xcc; 4096], 0), (0, 1));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), (0, 1));
}

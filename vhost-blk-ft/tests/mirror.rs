//! The process with an image of its own: a primary's writes wait for nobody, a backup's image gets the same writes, and
//! nothing of a backup's enters its guest.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod world;

use std::fs::File;
use std::os::unix::fs::FileExt;

use lockstep_staging::{ImageDigest, Mirrored, Mode};
use tempfile::TempDir;
use vhost_blk_ft::disk::{Disk, DiskOptions, Sharing};
use world::vmm::{Vmm, staging_and_ask, staging_in_turn};
use world::{DISCARD, Device, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, command, complaint};

const MIRROR: [&str; 2] = ["--mode", "mirror"];

/// The VMM of a backup: it never moves the gate.
struct Backup(Vmm);

impl Backup {
    fn connect(device: &Device) -> Self {
        Self(Vmm::connect(device))
    }

    fn order(&mut self, head: u16, kind: u32, sector: u64, said: &[u8], room: u32) -> u16 {
        let first = self.0.guest.request(head, kind, sector, said, room);
        self.0.order(first, 0);
        first
    }

    /// What the process says next: about which request, and what.
    fn hear(&mut self) -> (u16, Mirrored) {
        let (head, bytes) = self.0.completion();
        (head, Mirrored::from_bytes(&bytes).unwrap())
    }
}

/// One range of a discard or a write-zeroes.
fn range(sector: u64, sectors: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat()
}

fn image(device: &Device) -> Option<ImageDigest> {
    let (_end, facts) = staging_in_turn(device.folder.path(), true);
    facts.image
}

#[test]
fn a_primary_writes_its_own_image_without_acks_and_without_a_lease() {
    let device = Device::start(true, &MIRROR);
    let mut vmm = Vmm::connect(&device);
    vmm.gate.set_mode(Mode::Live);
    let write = vmm.write(0, 3, &[0xaa; 512], 5);
    assert_eq!(vmm.completion(), (write, vec![0]));
    let flush = vmm.guest.request(1, FLUSH, 0, &[], 0);
    vmm.order(flush, 5);
    assert_eq!(vmm.completion(), (flush, vec![0]));
    assert_eq!(device.on_disk(3, 512), [0xaa; 512]);
    // It is no output: nobody outside has seen it.
    assert_eq!(vmm.gate.snapshot().released, 0);
}

#[test]
fn a_backups_image_gets_what_the_guest_writes_and_the_guest_gets_nothing() {
    let device = Device::start(true, &MIRROR);
    let mut backup = Backup::connect(&device);
    let write = backup.order(0, OUT, 3, &[0xaa; 1024], 0);
    let zeroes = backup.order(1, WRITE_ZEROES, 0, &range(4, 1), 0);
    let flush = backup.order(2, FLUSH, 0, &[], 0);
    assert_eq!(backup.hear(), (write, Mirrored::Done));
    assert_eq!(backup.hear(), (zeroes, Mirrored::Done));
    assert_eq!(backup.hear(), (flush, Mirrored::Done));
    assert_eq!(device.on_disk(3, 1024), [[0xaa; 512], [0; 512]].concat());
    assert_eq!(backup.0.guest.status(0), 0xee, "guest memory is as it was");
}

#[test]
fn a_backup_answers_no_question_of_its_guest() {
    let device = Device::start(true, &MIRROR);
    let mut backup = Backup::connect(&device);
    let read = backup.order(0, IN, 3, &[], 512);
    let name = backup.order(1, GET_ID, 0, &[], 20);
    let beyond = backup.order(2, OUT, 1 << 40, &[1; 512], 0);
    assert_eq!(backup.hear(), (read, Mirrored::Nothing));
    assert_eq!(backup.hear(), (name, Mirrored::Nothing));
    assert_eq!(backup.hear(), (beyond, Mirrored::Nothing));
}

#[test]
fn writes_to_one_place_are_mirrored_in_the_order_in_which_they_came() {
    let device = Device::start(true, &MIRROR);
    let mut backup = Backup::connect(&device);
    let heads: Vec<u16> = (0..8)
        .map(|head| backup.order(head, OUT, 3, &[head as u8; 4096], 0))
        .collect();
    let heard: Vec<u16> = heads.iter().map(|_| backup.hear().0).collect();
    assert_eq!(heard, heads);
    assert_eq!(device.on_disk(3, 4096), [7; 4096]);
}

#[test]
fn a_discard_leaves_zeros_on_both_hosts() {
    let (a, b) = (Device::start(true, &MIRROR), Device::start(true, &MIRROR));
    let mut primary = Vmm::connect(&a);
    primary.gate.set_mode(Mode::Live);
    let mut backup = Backup::connect(&b);
    let discard = primary.guest.request(0, DISCARD, 0, &range(3, 2), 0);
    primary.order(discard, 0);
    assert_eq!(primary.completion(), (discard, vec![0]));
    let discard = backup.order(0, DISCARD, 0, &range(3, 2), 0);
    assert_eq!(backup.hear(), (discard, Mirrored::Done));
    assert_eq!(a.on_disk(3, 1536), [vec![0; 1024], vec![5; 512]].concat());
    assert_eq!(a.on_disk(0, 1 << 20), b.on_disk(0, 1 << 20));
}

#[test]
fn a_discard_that_zeros_would_take_too_long_for_is_not_offered_and_refused() {
    let folder = TempDir::new().unwrap();
    let image = File::create(folder.path().join("disk.img")).unwrap();
    image.set_len(64 << 20).unwrap();
    let device = Device::start_in(folder, true, &MIRROR);
    let mut vmm = Vmm::connect(&device);
    vmm.gate.set_mode(Mode::Live);
    let config = |at: usize| u32::from_le_bytes(vmm.facts.config[at..at + 4].try_into().unwrap());
    let (discard_max, zeroes_max) = (config(36), config(48));
    assert_eq!(discard_max, zeroes_max);

    let offered = vmm.guest.request(0, DISCARD, 0, &range(0, discard_max), 0);
    vmm.order(offered, 0);
    assert_eq!(vmm.completion(), (offered, vec![0]));
    let longer = vmm.guest.request(1, DISCARD, 0, &range(0, discard_max + 1), 0);
    vmm.order(longer, 0);
    assert_eq!(vmm.completion(), (longer, vec![1]));
}

#[test]
fn a_backup_that_goes_live_answers_what_it_is_ordered_from_then_on() {
    let device = Device::start(true, &MIRROR);
    let mut backup = Backup::connect(&device);
    let write = backup.order(0, OUT, 3, &[0xaa; 512], 0);
    assert_eq!(backup.hear(), (write, Mirrored::Done));
    let read = backup.order(1, IN, 3, &[], 512);
    assert_eq!(backup.hear(), (read, Mirrored::Nothing));

    let Backup(mut live) = backup;
    live.gate.set_mode(Mode::Live);
    live.order(read, 0);
    assert_eq!(live.completion(), (read, [vec![0xaa; 512], vec![0]].concat()));
    // The same write once more, as after a takeover.
    let write = live.write(0, 3, &[0xaa; 512], 0);
    assert_eq!(live.completion(), (write, vec![0]));
}

#[test]
fn a_backup_whose_file_system_is_full_says_so_and_goes_on() {
    let device = Device::start_on_a_small_file_system(true, &MIRROR);
    let mut backup = Backup::connect(&device);
    let fits = backup.order(0, OUT, 0, &[0xaa; 4096], 0);
    let too_much = backup.order(1, OUT, 2048, &vec![0xbb; 1 << 20], 0);
    let fits_too = backup.order(2, OUT, 1, &[0xcc; 512], 0);
    assert_eq!(backup.hear(), (fits, Mirrored::Done));
    let (head, said) = backup.hear();
    let Mirrored::Failed(why) = said else {
        panic!("{said:?}")
    };
    assert_eq!(head, too_much);
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(backup.hear(), (fits_too, Mirrored::Done));
}

#[test]
fn a_host_that_halted_leaves_its_image_alone() {
    let device = Device::start(true, &MIRROR);
    let mut vmm = Vmm::connect(&device);
    vmm.gate.set_mode(Mode::Halted);
    vmm.write(0, 3, &[0xaa; 512], 0);
    drop(vmm);
    // The next VMM is served only after everything of the one before it was looked at.
    let mut next = Vmm::connect(&device);
    next.gate.set_mode(Mode::Live);
    assert_eq!(next.read(0, 3), [3; 512]);
}

#[test]
fn a_vmm_that_wants_to_compare_learns_what_the_image_holds() {
    let (a, b) = (Device::start(true, &MIRROR), Device::start(true, &MIRROR));
    assert!(image(&a).is_some());
    assert_eq!(image(&a), image(&b));
    let file = File::options().write(true).open(b.path("disk.img")).unwrap();
    file.write_all_at(&[1], 77).unwrap();
    assert_ne!(image(&a), image(&b));
}

#[test]
fn a_vmm_that_does_not_ask_and_one_of_a_shared_disk_learn_nothing() {
    let (mirrored, shared) = (Device::start(true, &MIRROR), Device::start(true, &[]));
    let (_end, facts) = staging_and_ask(mirrored.folder.path(), false).unwrap();
    assert!(facts.is_mirrored && facts.image.is_none());
    let (_end, facts) = staging_and_ask(shared.folder.path(), true).unwrap();
    assert!(!facts.is_mirrored && facts.image.is_none());
}

#[test]
fn two_hosts_that_are_given_one_image_are_told_so() {
    let device = Device::start(true, &MIRROR);
    assert!(image(&device).is_some());
    let mut second = command(device.folder.path(), true);
    second.args(MIRROR);
    let said = complaint(second);
    assert!(said.contains("is in use by another process"), "{said}");
    assert!(said.contains("an image of its own"), "{said}");
}

#[test]
#[ignore = "a measurement: run it in release with DISK set to an image, and --ignored --nocapture"]
fn what_it_takes_to_tell_what_an_image_holds() {
    let path = std::env::var_os("DISK").unwrap();
    let disk = Disk::open(&DiskOptions {
        path: path.into(),
        read_only: true,
        sharing: Sharing::Mirrored,
        serial: "disk".to_owned(),
    });
    let disk = disk.unwrap();
    let begin = std::time::Instant::now();
    let digest = vhost_blk_ft::image::digest(&disk).unwrap();
    println!(
        "{} bytes in {:?}: {:02x?}",
        disk.bytes(),
        begin.elapsed(),
        &digest[..8]
    );
}

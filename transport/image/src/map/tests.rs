//! Two hosts with an image each, whose power goes at the worst moment: what the maps say afterwards covers every block in
//! which the images differ. What a host had not flushed is lost or kept as chance has it.

use super::*;
use proptest::prelude::*;
use tempfile::TempDir;

const BLOCKS: u32 = 12;
const PAIRING: PairingId = [7; 16];

/// What a guest asks of its disk.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Write { block: u32, value: u8 },
    Flush,
}

/// A host: its map is real, of its image only what it holds is told.
struct Host {
    folder: TempDir,
    map: ChangeMap,
    stable: Vec<u8>,
    seen: Vec<u8>,
}

impl Host {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let image = File::create(folder.path().join("disk")).unwrap();
        image.set_len(u64::from(BLOCKS) * (64 << 10)).unwrap();
        let map = ChangeMap::open(&image, folder.path().join("disk.changes")).unwrap();
        Self {
            folder,
            map,
            stable: vec![0; BLOCKS as usize],
            seen: vec![0; BLOCKS as usize],
        }
    }

    fn image(&self) -> File {
        File::open(self.folder.path().join("disk")).unwrap()
    }

    fn account(&self) -> Account {
        account_of(&self.image(), &self.folder.path().join("disk.changes")).unwrap()
    }

    fn serve(&mut self, asked: &[Ask]) {
        for ask in asked {
            match *ask {
                Ask::Write { block, value } => {
                    self.map
                        .before_change(u64::from(block) * (64 << 10), 512)
                        .unwrap();
                    self.seen[block as usize] = value;
                    self.map.changed();
                }
                Ask::Flush => {
                    self.stable.clone_from(&self.seen);
                    self.map.flushed();
                }
            }
        }
    }

    /// The power goes; of what was not flushed, those blocks stay whose bit is set.
    fn lose_power(&mut self, stay: u16) {
        for block in 0..BLOCKS as usize {
            if stay >> block & 1 == 0 {
                self.seen[block] = self.stable[block];
            }
        }
        self.stable.clone_from(&self.seen);
        self.map = ChangeMap::open(&self.image(), self.folder.path().join("disk.changes")).unwrap();
    }

    fn differs_from(&self, other: &Self) -> Vec<Block> {
        (0..BLOCKS)
            .filter(|block| self.seen[*block as usize] != other.seen[*block as usize])
            .map(Block::new)
            .collect()
    }
}

fn pair() -> (Host, Host) {
    let (mut a, mut b) = (Host::new(), Host::new());
    a.map.begin_pairing(PAIRING);
    b.map.begin_pairing(PAIRING);
    (a, b)
}

fn write(block: u32) -> Ask {
    Ask::Write { block, value: 9 }
}

#[test]
fn a_host_that_comes_back_needs_what_changed_since_and_what_was_under_way() {
    let (mut a, mut b) = pair();
    let together = [write(0), Ask::Flush, write(5)];
    a.serve(&together);
    b.serve(&together);
    a.lose_power(0);
    b.map.end_pairing();
    b.serve(&[write(9), Ask::Flush]);

    let differ = b.account().may_differ(&a.account()).unwrap();

    // Stamped in groups of four.
    let numbers: Vec<_> = differ.into_iter().map(Block::get).collect();
    assert_eq!(numbers, [4, 5, 6, 7, 8, 9, 10, 11]);
}

#[test]
fn hosts_that_were_never_a_pair_or_never_flushed_together_may_differ_anywhere() {
    let (mut a, mut b) = pair();
    assert_eq!(b.account().may_differ(&Host::new().account()), None);
    a.serve(&[write(1)]);
    b.serve(&[write(1)]);
    assert_eq!(b.account().may_differ(&a.account()), None);
}

#[test]
fn what_failed_on_one_host_is_not_counted_as_equal_afterwards() {
    let (mut a, mut b) = pair();
    let together = [write(0), Ask::Flush, write(5)];
    a.serve(&together);
    b.serve(&together);
    b.map.end_pairing();
    let more = [Ask::Flush; FLUSHES_A_TURN as usize * 3];
    a.serve(&more);
    b.serve(&more);

    assert!(
        b.account()
            .may_differ(&a.account())
            .unwrap()
            .contains(&Block::new(5))
    );
}

#[test]
fn a_third_host_in_between_is_no_reason_to_forget() {
    let (mut a, mut b) = pair();
    let mut c = Host::new();
    a.serve(&[write(0), Ask::Flush, write(2)]);
    b.serve(&[write(0), Ask::Flush, write(2)]);
    b.map.end_pairing();
    for host in [&mut b, &mut c] {
        host.map.begin_pairing([8; 16]);
        host.serve(&[Ask::Flush, write(8), Ask::Flush]);
    }

    let differ = b.account().may_differ(&a.account()).unwrap();

    assert!(
        differ.contains(&Block::new(8)) && differ.len() < BLOCKS as usize,
        "{differ:?}"
    );
}

#[test]
fn a_torn_map_and_one_of_another_image_know_nothing() {
    let (mut a, mut b) = pair();
    a.serve(&[write(0), Ask::Flush, write(1)]);
    b.serve(&[write(0), Ask::Flush, write(1)]);
    assert!(b.account().may_differ(&a.account()).is_some());

    let path = a.folder.path().join("disk.changes");
    let whole = std::fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn[100] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    assert_eq!(b.account().may_differ(&a.account()), None);
    std::fs::write(&path, &whole[..5000.min(whole.len() - 1)]).unwrap();
    assert_eq!(b.account().may_differ(&a.account()), None);

    std::fs::write(&path, &whole).unwrap();
    assert!(b.account().may_differ(&a.account()).is_some());
    let disk = a.folder.path().join("disk");
    std::fs::copy(&disk, a.folder.path().join("copy")).unwrap();
    std::fs::rename(a.folder.path().join("copy"), &disk).unwrap();
    assert_eq!(b.account().may_differ(&a.account()), None);
}

#[test]
fn an_image_that_changed_after_its_keeper_died_is_not_believed() {
    let (mut a, mut b) = pair();
    a.serve(&[write(0), Ask::Flush, write(1)]);
    b.serve(&[write(0), Ask::Flush, write(1)]);
    // As if its keeper had died long ago.
    a.map.alive_until = 1;
    a.map.save().unwrap();

    assert_eq!(b.account().may_differ(&a.account()), None);
}

#[test]
fn an_account_is_the_same_on_the_other_host_and_nonsense_is_none() {
    let (mut a, _b) = pair();
    a.serve(&[write(0), Ask::Flush, write(1)]);
    let account = a.account();
    let bytes = account.to_bytes();
    assert_eq!(Account::from_bytes(&bytes), Some(account));
    assert_eq!(Account::from_bytes(&bytes[1..]), None);
    assert_eq!(Account::from_bytes(&[]), None);
    assert_eq!(Account::from_bytes(&[0xff; 64]), None);
}

#[test]
fn a_map_that_goes_knows_nothing_and_keeps_nothing() {
    let (mut a, mut b) = pair();
    a.serve(&[write(0), Ask::Flush, write(1)]);
    b.serve(&[write(0), Ask::Flush, write(1)]);
    a.map.forget().unwrap();
    assert!(!a.map.is_kept() && !a.folder.path().join("disk.changes").exists());
    assert_eq!(b.account().may_differ(&a.account()), None);
}

#[test]
fn a_map_that_cannot_go_goes_on_to_be_kept() {
    let (mut a, _b) = pair();
    a.serve(&[write(0), Ask::Flush, write(1)]);
    // A folder in its place is no file that can be removed.
    let path = a.folder.path().join("disk.changes");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    a.map.forget().unwrap_err();
    assert!(a.map.is_kept());
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        3 => (0..BLOCKS, any::<u8>()).prop_map(|(block, value)| Ask::Write { block, value }),
        2 => Just(Ask::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_block_that_differs_is_known(
        together in prop::collection::vec(ask(), 1..160),
        done in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        stay in (any::<u16>(), any::<u16>()),
        alone in prop::collection::vec(ask(), 0..40),
        survivor_restarts in any::<bool>(),
    ) {
        let (mut a, mut b) = pair();
        a.serve(&together[..done.0.index(together.len() + 1)]);
        b.serve(&together[..done.1.index(together.len() + 1)]);
        a.lose_power(stay.0);
        b.map.end_pairing();
        b.serve(&alone);
        if survivor_restarts {
            b.lose_power(stay.1);
            b.serve(&alone);
        }
        if let Some(known) = b.account().may_differ(&a.account()) {
            for block in b.differs_from(&a) {
                prop_assert!(known.contains(&block), "{block:?} of {known:?}");
            }
        }
    }
}

//! The file store on the real disk: who wins among threads, and what the system's errors are told as.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;

fn real() -> (TempDir, FileStore) {
    let dir = TempDir::new().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn many_threads_on_a_real_directory_never_share_a_term() {
    let (_dir, store) = real();
    let wins: Vec<u64> = thread::scope(|scope| {
        let claimants: Vec<_> = (0..8)
            .map(|number| {
                let store = &store;
                scope.spawn(move || {
                    let verdicts = (0..10).map(|term| store.claim(&vm(), Term::new(term), &holder(number)));
                    verdicts
                        .filter(|verdict| matches!(verdict, Ok(Verdict::Granted { .. })))
                        .count() as u64
                })
            })
            .collect();
        claimants
            .into_iter()
            .map(|claimant| claimant.join().unwrap())
            .collect()
    });

    assert_eq!(wins.iter().sum::<u64>(), 10);
    assert_eq!(store.history(&vm()).unwrap().len(), 10);
}

#[test]
fn a_directory_that_is_missing_or_none_is_told_as_such() {
    let (dir, _) = real();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();

    assert!(matches!(
        FileStore::open(&dir.path().join("gone")),
        Err(StoreError::Missing { .. })
    ));
    assert!(matches!(
        FileStore::open(&file),
        Err(StoreError::NotADirectory { .. })
    ));
}

#[test]
fn a_takeover_on_a_disk_that_is_not_mounted_grants_nothing() {
    let (_dir, store) = real();

    let outcome = store.claim(&vm(), Term::new(3), &holder(1));

    assert!(
        matches!(outcome, Err(StoreError::NeverHandedOut { .. })),
        "{outcome:?}"
    );
    assert_eq!(store.read(&vm()).unwrap(), None);
}

#[test]
fn a_term_beyond_the_register_is_never_granted() {
    let (_dir, store) = real();
    store.claim(&vm(), Term::ZERO, &holder(1)).unwrap();

    for expected in [Term::new(2), Term::new(9), Term::MAX] {
        let outcome = store.claim(&vm(), expected, &holder(1));
        assert!(
            matches!(outcome, Err(StoreError::NeverHandedOut { .. })),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_damaged_term_file_is_refused_with_its_name_and_nobody_gets_the_next_term() {
    let (dir, store) = real();
    store.claim(&vm(), Term::ZERO, &holder(1)).unwrap();
    let path = dir.path().join("shop/term-00000000000000000001");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();

    let outcome = store.claim(&vm(), Term::new(1), &holder(2)).unwrap_err();

    assert!(
        matches!(&outcome, StoreError::Damaged { path: named, .. } if *named == path),
        "{outcome:?}"
    );
    assert!(!outcome.may_pass());
    assert!(!dir.path().join("shop/term-00000000000000000002").exists());
}

#[test]
fn a_file_that_only_looks_like_a_term_is_none() {
    let (dir, store) = real();
    store.claim(&vm(), Term::ZERO, &holder(1)).unwrap();
    fs::write(dir.path().join("shop/term-2"), "").unwrap();
    fs::write(dir.path().join("shop/term-00000000000000000002.bak"), "").unwrap();

    assert_eq!(
        store.read(&vm()).unwrap().map(|tenure| tenure.term),
        Some(Term::new(1))
    );
}

#[test]
fn a_directory_that_may_not_be_written_is_told_as_such() {
    let (dir, store) = real();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write anywhere: then there is nothing to see here.
    if fs::write(dir.path().join("probe"), "").is_ok() {
        return;
    }

    let outcome = store.claim(&vm(), Term::ZERO, &holder(1));

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(
        matches!(outcome, Err(StoreError::NotWritable { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_directory_that_can_keep_terms_is_left_as_it_was_by_the_trial() {
    let (dir, store) = real();

    store.try_out().unwrap();

    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_trials_that_were_killed_long_ago_have_left_is_cleared_and_a_trial_under_way_is_not() {
    let (dir, store) = real();
    let old = SystemTime::now() - 2 * DRAFT_LIFETIME;
    let left = fs::File::create(dir.path().join(".lockstep-check-1.0")).unwrap();
    left.set_modified(old).unwrap();
    fs::write(dir.path().join(".lockstep-check-1.1"), "").unwrap();

    store.try_out().unwrap();

    assert!(!dir.path().join(".lockstep-check-1.0").exists());
    assert!(dir.path().join(".lockstep-check-1.1").exists());
}

#[test]
fn a_file_with_the_name_of_a_vm_is_no_vm_and_whoever_asks_for_it_learns_where_it_is() {
    let (dir, store) = real();
    store.claim(&vm(), Term::ZERO, &holder(1)).unwrap();
    let (file, name) = (dir.path().join("notes"), VmName::new("notes").unwrap());
    fs::write(&file, "").unwrap();

    assert_eq!(store.vms().unwrap(), [vm()]);
    let told = store.claim(&name, Term::ZERO, &holder(1));
    assert!(
        matches!(&told, Err(StoreError::NotADirectory { dir }) if *dir == file),
        "{told:?}"
    );
}

//! The files of an identity: how they are made, and which ones are refused.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lockstep_quic::dates::{DateError, Validity};
use lockstep_quic::identity::{Identity, IdentityError, MAX_PEM_BYTES, PinnedPeer};
use lockstep_quic::keys::{Existing, KeyPaths, KeysError, write_keys};
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn keys(dir: &Path, name: &str) -> KeyPaths {
    write_keys(dir, name, Validity::years(1), Existing::Keep).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names_in(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

#[test]
fn fresh_keys_load_and_only_the_owner_may_read_the_private_one() {
    let dir = TempDir::new().unwrap();

    let paths = keys(&dir.path().join("new"), "a");

    let identity = Identity::load(&paths.certificate, &paths.key).unwrap();
    assert_eq!(identity.fingerprint(), paths.fingerprint);
    assert_eq!(
        PinnedPeer::load(&paths.certificate).unwrap().fingerprint(),
        paths.fingerprint
    );
    assert_eq!((mode(&paths.key), mode(&paths.certificate)), (0o600, 0o644));
    assert_eq!(
        names_in(paths.key.parent().unwrap()),
        [paths.certificate, paths.key]
    );
}

#[test]
fn keys_that_exist_stay_as_they_are() {
    let dir = TempDir::new().unwrap();
    let first = keys(dir.path(), "a");

    let second = write_keys(dir.path(), "a", Validity::years(1), Existing::Keep);

    assert!(matches!(second, Err(KeysError::Exists { .. })));
    assert_eq!(
        Identity::load(&first.certificate, &first.key)
            .unwrap()
            .fingerprint(),
        first.fingerprint
    );
}

#[test]
fn a_lone_key_without_its_certificate_is_not_overwritten_either() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.key"), "precious").unwrap();

    let refused = write_keys(dir.path(), "a", Validity::years(1), Existing::Keep);

    assert!(matches!(refused, Err(KeysError::Exists { .. })));
    assert_eq!(fs::read_to_string(dir.path().join("a.key")).unwrap(), "precious");
}

#[test]
fn replaced_keys_are_new_ones() {
    let dir = TempDir::new().unwrap();
    let first = keys(dir.path(), "a");

    let second = write_keys(dir.path(), "a", Validity::years(1), Existing::Replace).unwrap();

    assert_ne!(first.fingerprint, second.fingerprint);
    assert_eq!(
        Identity::load(&second.certificate, &second.key)
            .unwrap()
            .fingerprint(),
        second.fingerprint
    );
    assert_eq!(mode(&second.key), 0o600);
}

#[test]
fn a_name_that_leaves_the_directory_is_refused() {
    let dir = TempDir::new().unwrap();

    let refused = write_keys(dir.path(), "../a", Validity::years(1), Existing::Keep);

    assert!(matches!(refused, Err(KeysError::Name { .. })));
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let paths = keys(dir.path(), "a");
    fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o640)).unwrap();

    let refused = Identity::load(&paths.certificate, &paths.key).unwrap_err();

    assert!(matches!(refused, IdentityError::LooseMode { mode: 0o640, .. }));
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (keys(dir.path(), "a"), keys(dir.path(), "b"));

    let refused = Identity::load(&a.certificate, &b.key);

    assert!(matches!(refused, Err(IdentityError::Mismatch { .. })));
}

#[test]
fn a_certificate_of_the_past_is_refused_and_says_when_it_ended() {
    let past = Validity {
        from: SystemTime::UNIX_EPOCH + DAY,
        until: SystemTime::UNIX_EPOCH + 365 * DAY,
    };
    let pems = Identity::generate("old", past).unwrap();

    let refused = Identity::from_pems("old.crt", &pems).unwrap_err();

    assert!(matches!(refused, IdentityError::Dates(DateError::Expired { .. })));
    assert!(
        refused
            .to_string()
            .contains("old.crt expired at 1971-01-01 00:00 UTC"),
        "{refused}"
    );
}

#[test]
fn a_certificate_of_the_future_is_refused_and_says_when_it_begins() {
    let future = Validity {
        from: SystemTime::now() + DAY,
        until: SystemTime::now() + 2 * DAY,
    };
    let pems = Identity::generate("new", future).unwrap();

    let refused = Identity::from_pems("new.crt", &pems).unwrap_err();

    assert!(matches!(
        refused,
        IdentityError::Dates(DateError::NotYetValid { .. })
    ));
}

#[test]
fn a_pin_is_exactly_one_certificate() {
    let dir = TempDir::new().unwrap();
    let paths = keys(dir.path(), "a");
    let one = fs::read_to_string(&paths.certificate).unwrap();
    let two = dir.path().join("two.crt");
    fs::write(&two, format!("{one}{one}")).unwrap();

    assert!(matches!(
        PinnedPeer::load(&two),
        Err(IdentityError::NotOneCertificate { count: 2, .. })
    ));
    assert!(matches!(
        PinnedPeer::load(&paths.key),
        Err(IdentityError::NotOneCertificate { count: 0, .. })
    ));
}

#[test]
fn a_huge_file_is_not_read_to_its_end() {
    let dir = TempDir::new().unwrap();
    let huge = dir.path().join("huge.crt");
    fs::write(&huge, vec![b'x'; MAX_PEM_BYTES as usize + 1]).unwrap();

    assert!(matches!(
        PinnedPeer::load(&huge),
        Err(IdentityError::TooLong { .. })
    ));
}

#[test]
fn the_fingerprint_is_the_one_that_openssl_shows() {
    let fingerprint = lockstep_quic::identity::Fingerprint::of(b"abc");

    assert_eq!(
        fingerprint.to_string(),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

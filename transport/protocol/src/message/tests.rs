//! Hosts that are no pair are told which thing differs.

use super::*;

fn hello(node: &str, role: Role) -> Hello {
    Hello {
        version: 1,
        release: "0.1.0".into(),
        config: Digest::new([1; 32]),
        ..Hello::bare(NodeName::new(node).unwrap(), role)
    }
}

/// What the primary `a` says to a backup `b` that differs by `change`.
fn said(change: impl FnOnce(&mut Hello)) -> String {
    let mut theirs = hello("b", Role::Backup);
    change(&mut theirs);
    Hello::check(&hello("a", Role::Primary), &theirs)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_primary_and_a_backup_with_equal_facts_are_a_pair() {
    assert_eq!(
        Hello::check(&hello("a", Role::Primary), &hello("b", Role::Backup)),
        Ok(())
    );
}

#[test]
fn another_version_is_refused_by_its_number_before_anything_else() {
    let sentence = said(|theirs| {
        theirs.version = 2;
        theirs.release = "0.2.0".into();
        theirs.config = Digest::new([9; 32]);
    });
    assert!(
        sentence.contains("host b runs release 0.2.0 (protocol version 2)"),
        "{sentence}"
    );
}

#[test]
fn another_release_is_refused() {
    assert!(said(|theirs| theirs.release = "0.1.1".into()).contains("host b runs release 0.1.1"));
}

#[test]
fn another_configuration_is_refused_with_both_digests() {
    let sentence = said(|theirs| theirs.config = Digest::new([9; 32]));
    assert!(
        sentence.contains("different configurations (01010101 and 09090909)"),
        "{sentence}"
    );
}

#[test]
fn another_cpu_template_is_refused() {
    assert!(said(|theirs| theirs.template = Digest::new([9; 32])).contains("different CPU templates"));
}

#[test]
fn other_devices_are_refused() {
    assert!(said(|theirs| theirs.devices = Digest::new([9; 32])).contains("different devices"));
}

/// Images with these digests, after a term of `holder`.
fn images(holder: Option<&str>, digests: [Option<u8>; 2]) -> Result<(), String> {
    let [ours, theirs] = digests.map(|digest| {
        digest.map(|byte| Image {
            digest: Digest::new([byte; 32]),
            last_holder: holder.map(|name| NodeName::new(name).unwrap()),
        })
    });
    let with = |image, hello| Hello { image, ..hello };
    Hello::check(
        &with(ours, hello("a", Role::Primary)),
        &with(theirs, hello("b", Role::Backup)),
    )
    .map_err(|refusal| refusal.to_string())
}

#[test]
fn hosts_with_equal_images_are_a_pair_whoever_ran_last() {
    assert_eq!(images(None, [Some(1), Some(1)]), Ok(()));
    assert_eq!(images(Some("b"), [Some(1), Some(1)]), Ok(()));
}

#[test]
fn hosts_with_different_images_are_told_whose_to_copy_where() {
    let sentence = images(Some("b"), [Some(1), Some(2)]).unwrap_err();
    assert_eq!(
        sentence,
        "Host a and host b have different disk images (01010101 and 02020202): host b held the last term and has the \
         newer one; copy it over the one on host a while neither runs, then start both again"
    );
}

#[test]
fn different_images_of_a_vm_that_never_ran_or_ran_elsewhere_are_refused_too() {
    let never = images(None, [Some(1), Some(2)]).unwrap_err();
    assert!(never.contains("no host has run this VM yet"), "{never}");
    let elsewhere = images(Some("c"), [Some(1), Some(2)]).unwrap_err();
    assert!(
        elsewhere.contains("host c, which is neither of them"),
        "{elsewhere}"
    );
    let one = images(Some("a"), [Some(1), None]).unwrap_err();
    assert!(one.contains("(01010101 and none): host a held"), "{one}");
}

#[test]
fn images_of_different_lengths_are_told_as_images_and_not_as_devices() {
    let mut theirs = hello("b", Role::Backup);
    theirs.devices = Digest::new([9; 32]);
    theirs.image = Some(Image {
        digest: Digest::new([9; 32]),
        last_holder: None,
    });
    let refusal = Hello::check(&hello("a", Role::Primary), &theirs).unwrap_err();
    assert!(matches!(refusal, Refusal::Images(..)));
}

#[test]
fn another_timing_is_refused() {
    assert!(said(|theirs| theirs.timing.lease /= 2).contains("different heartbeat, time-out or lease"));
}

#[test]
fn another_term_and_another_beginning_are_refused() {
    assert!(said(|theirs| theirs.term = Term::new(2)).contains("host b is in term 2"));
    assert!(said(|theirs| theirs.start = LogOffset::new(7)).contains("that of host b at 7"));
}

#[test]
fn two_primaries_and_two_namesakes_are_refused() {
    assert!(said(|theirs| theirs.role = Role::Primary).contains("both want to be the primary"));
    assert!(said(|theirs| theirs.node = NodeName::new("a").unwrap()).contains("call themselves a"));
}

#[test]
fn a_sentence_from_a_peer_is_one_printable_line_of_bounded_length() {
    let sentence = Sentence::new(&"\x1b[2Jwölf\n".repeat(100));
    assert!(sentence.as_str().len() <= MAX_SENTENCE);
    assert!(!sentence.as_str().contains(char::is_control));
    assert!(sentence.as_str().starts_with(" [2Jwölf  [2J"));
}

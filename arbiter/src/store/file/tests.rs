//! The file store on a modelled disk: every crash point, every lost reply, and every interleaving and power cut
//! that the seeds reach.

mod model;
mod real;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;

use lockstep_protocol::ids::{Incarnation, NodeName};
use model::{Choices, Hand, Mishap, Platter, Turnstile};
use proptest::prelude::*;

use super::*;

const ROOT: &str = "/shared";

fn holder(number: usize) -> Holder {
    let node = NodeName::new(&format!("node-{number}")).unwrap();
    Holder {
        node,
        incarnation: Incarnation::new(number as u128),
    }
}

fn vm() -> VmName {
    VmName::new("shop").unwrap()
}

fn fresh_platter() -> Arc<Mutex<Platter>> {
    Arc::new(Mutex::new(Platter::with_root(Path::new(ROOT))))
}

fn store(platter: &Arc<Mutex<Platter>>, mishap: Mishap) -> FileStore<Hand> {
    FileStore::on(Hand::on(platter, mishap), Path::new(ROOT))
}

/// A platter on which `terms` were handed out to node 9.
fn platter_with(terms: u64) -> Arc<Mutex<Platter>> {
    let platter = fresh_platter();
    let store = store(&platter, Mishap::None);
    (0..terms).for_each(|term| drop(store.claim(&vm(), Term::new(term), &holder(9)).unwrap()));
    platter
}

fn steps_of_a_claim(terms: u64) -> usize {
    let store = store(&platter_with(terms), Mishap::None);
    store.claim(&vm(), Term::new(terms), &holder(1)).unwrap();
    store.disk.steps()
}

const fn granted(term: u64) -> Verdict {
    Verdict::Granted {
        term: Term::new(term),
    }
}

/// A claimant meets a mishap at one step; then the power is cut; then another one claims the same term, and the
/// first one asks again. Exactly one of them has it, and a grant that was given before still stands.
fn one_of_two_has_the_term(terms: u64, mishap: Mishap, seed: u64) {
    let platter = platter_with(terms);
    let expected = Term::new(terms);
    let first = store(&platter, mishap).claim(&vm(), expected, &holder(1));
    platter.lock().unwrap().cut_power(&mut Choices(seed));
    let after = store(&platter, Mishap::None);
    let second = after.claim(&vm(), expected, &holder(2)).unwrap();
    let again = after.claim(&vm(), expected, &holder(1)).unwrap();

    let grant = granted(terms + 1);
    assert_eq!(
        [&second, &again]
            .iter()
            .filter(|verdict| ***verdict == grant)
            .count(),
        1,
        "{mishap:?}"
    );
    assert!(
        first.is_err() || again == grant,
        "{mishap:?}: {first:?}, then {second:?}"
    );
    assert_eq!(after.history(&vm()).unwrap().len() as u64, terms + 1);
}

#[test]
fn a_claimant_that_dies_before_any_step_leaves_one_holder_at_most() {
    for terms in 0..3 {
        for step in 0..=steps_of_a_claim(terms) {
            (0..20).for_each(|seed| one_of_two_has_the_term(terms, Mishap::DiesBefore(step), seed));
        }
    }
}

#[test]
fn a_term_that_is_found_to_be_ones_own_is_granted_only_once_it_survives_a_power_cut() {
    for step in 0..=steps_of_a_claim(1) {
        for seed in 0..20 {
            let platter = platter_with(1);
            drop(store(&platter, Mishap::DiesBefore(step)).claim(&vm(), Term::new(1), &holder(1)));
            let after = store(&platter, Mishap::None);
            assert_eq!(after.claim(&vm(), Term::new(1), &holder(1)).unwrap(), granted(2));
            platter.lock().unwrap().cut_power(&mut Choices(seed));
            let newest = after.read(&vm()).unwrap();
            assert_eq!(
                newest,
                Some(Tenure {
                    term: Term::new(2),
                    holder: holder(1)
                }),
                "{step}"
            );
        }
    }
}

#[test]
fn a_refusal_names_a_holder_that_the_register_still_names_after_a_power_cut() {
    for step in 0..=steps_of_a_claim(1) {
        for seed in 0..20 {
            let platter = platter_with(1);
            drop(store(&platter, Mishap::DiesBefore(step)).claim(&vm(), Term::new(1), &holder(1)));
            let verdict = store(&platter, Mishap::None).claim(&vm(), Term::new(1), &holder(0));
            platter.lock().unwrap().cut_power(&mut Choices(seed));
            check_against_register(&platter, &[vec![(Term::new(1), verdict.unwrap())]]);
        }
    }
}

#[test]
fn a_claimant_that_was_overtaken_long_ago_is_told_by_a_holder_that_survives_a_power_cut() {
    for step in 0..=steps_of_a_claim(1) {
        for seed in 0..20 {
            let platter = platter_with(1);
            drop(store(&platter, Mishap::DiesBefore(step)).claim(&vm(), Term::new(1), &holder(1)));
            let verdict = store(&platter, Mishap::None).claim(&vm(), Term::ZERO, &holder(0));
            platter.lock().unwrap().cut_power(&mut Choices(seed));
            check_against_register(&platter, &[vec![(Term::ZERO, verdict.unwrap())]]);
        }
    }
}

#[test]
fn a_lost_reply_to_any_step_leaves_one_holder() {
    for terms in 0..3 {
        for step in 0..=steps_of_a_claim(terms) {
            (0..20).for_each(|seed| one_of_two_has_the_term(terms, Mishap::LosesReplyOf(step), seed));
        }
    }
}

#[test]
fn an_error_at_any_step_leaves_one_holder() {
    for step in 0..=steps_of_a_claim(1) {
        let mishap = Mishap::Fails(step, io::ErrorKind::Other);
        (0..20).for_each(|seed| one_of_two_has_the_term(1, mishap, seed));
    }
}

#[test]
fn the_link_that_happened_although_it_said_otherwise_is_a_grant() {
    let outcomes = (0..steps_of_a_claim(1)).map(|step| {
        let platter = platter_with(1);
        store(&platter, Mishap::LosesReplyOf(step)).claim(&vm(), Term::new(1), &holder(1))
    });

    // The link, and the removal of the draft: what they say is not believed.
    assert_eq!(
        outcomes
            .filter(|outcome| matches!(outcome, Ok(Verdict::Granted { .. })))
            .count(),
        2
    );
}

#[test]
fn a_full_disk_changes_nothing_and_is_told_as_such() {
    for step in 0..steps_of_a_claim(1) {
        let platter = platter_with(1);
        let full = store(&platter, Mishap::Fails(step, io::ErrorKind::StorageFull));
        let outcome = full.claim(&vm(), Term::new(1), &holder(1));
        let told = matches!(
            outcome,
            Err(StoreError::Full { .. }) | Ok(Verdict::Granted { .. })
        );
        assert!(told, "step {step}: {outcome:?}");
    }
}

#[test]
fn what_a_finished_claim_leaves_is_its_term_alone() {
    let platter = platter_with(2);

    let mut names = Vec::new();
    let disk = Hand::on(&platter, Mishap::None);
    disk.names(Path::new("/shared/shop"), &mut |name| names.push(name.to_owned()))
        .unwrap();

    assert_eq!(names, ["term-00000000000000000001", "term-00000000000000000002"]);
}

#[test]
fn the_drafts_of_an_earlier_start_are_cleared_and_those_of_others_are_not() {
    let platter = platter_with(1);
    let disk = Hand::on(&platter, Mishap::None);
    let place = Path::new("/shared/shop");
    let earlier = Holder {
        incarnation: Incarnation::new(77),
        ..holder(1)
    };
    disk.create(&place.join(format!("{}1.1", draft_prefix(&earlier))))
        .unwrap();
    let foreign = format!("{}1.1", draft_prefix(&holder(2)));
    disk.create(&place.join(&foreign)).unwrap();

    store(&platter, Mishap::None)
        .claim(&vm(), Term::new(1), &holder(1))
        .unwrap();

    let mut drafts = Vec::new();
    disk.names(place, &mut |name| {
        drafts.extend(name.starts_with(DRAFT_PREFIX).then(|| name.to_owned()))
    })
    .unwrap();
    assert_eq!(drafts, [foreign]);
}

/// What one claimant saw: the term that it expected and what it was told.
type Told = Vec<(Term, Verdict)>;

/// Claims until it has had `rounds` verdicts or cannot go on.
fn play(store: &FileStore<Hand>, me: &Holder, rounds: usize) -> Told {
    let mut told = Told::new();
    for _ in 0..rounds {
        let Ok(newest) = store.read(&vm()) else { break };
        let expected = newest.map_or(Term::ZERO, |tenure| tenure.term);
        match store.claim(&vm(), expected, me) {
            Ok(verdict) => told.push((expected, verdict)),
            Err(_) => break,
        }
    }
    told
}

fn play_together(platter: &Arc<Mutex<Platter>>, mishaps: &[Mishap], schedule: Vec<u8>) -> Vec<Told> {
    let turnstile = Arc::new(Turnstile::new(mishaps.len(), schedule));
    thread::scope(|scope| {
        let players: Vec<_> = mishaps
            .iter()
            .enumerate()
            .map(|(number, mishap)| {
                let hand = Hand::on(platter, *mishap).taking_turns(&turnstile, number);
                let turnstile = turnstile.clone();
                scope.spawn(move || {
                    let told = play(&FileStore::on(hand, Path::new(ROOT)), &holder(number), 3);
                    turnstile.leave(number);
                    told
                })
            })
            .collect();
        players.into_iter().map(|player| player.join().unwrap()).collect()
    })
}

/// Every grant is in the register, under its holder's name; every refusal names a holder that the register names.
fn check_against_register(platter: &Arc<Mutex<Platter>>, told: &[Told]) {
    let history = store(platter, Mishap::None).history(&vm()).unwrap();
    let register: BTreeMap<_, _> = history
        .into_iter()
        .map(|tenure| (tenure.term, tenure.holder))
        .collect();
    assert_eq!(
        register.keys().map(|term| term.get()).collect::<Vec<_>>(),
        (1..=register.len() as u64).collect::<Vec<_>>()
    );
    for (number, told) in told.iter().enumerate() {
        for (expected, verdict) in told {
            match verdict {
                Verdict::Granted { term } => {
                    assert_eq!(*term, expected.next());
                    assert_eq!(register.get(term), Some(&holder(number)));
                }
                Verdict::Refused { term, holder } => {
                    assert!(term > expected);
                    assert_eq!(register.get(term), Some(holder));
                }
            }
        }
    }
}

fn any_mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        3 => Just(Mishap::None),
        2 => (0_usize..50).prop_map(Mishap::DiesBefore),
        1 => (0_usize..50).prop_map(Mishap::LosesReplyOf),
        1 => (0_usize..50).prop_map(|step| Mishap::Fails(step, io::ErrorKind::StorageFull)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn many_claimants_in_any_order_with_any_mishap_and_a_power_cut_never_share_a_term(
        mishaps in proptest::collection::vec(any_mishap(), 2..5),
        schedule in proptest::collection::vec(any::<u8>(), 0..200),
        seed in any::<u64>(),
    ) {
        let platter = fresh_platter();
        let told = play_together(&platter, &mishaps, schedule);
        check_against_register(&platter, &told);
        platter.lock().unwrap().cut_power(&mut Choices(seed));
        check_against_register(&platter, &told);
        // And it can go on from there.
        prop_assert_eq!(play(&store(&platter, Mishap::None), &holder(8), 2).len(), 2);
    }
}

//! Stories of a pair: a link that is cut, hosts that sleep, an arbiter out of reach.

#![allow(
    clippy::unwrap_used,
    reason = "this is a test; the lint's own exception knows only test functions"
)]

mod world;

use lockstep_protocol::{Duration, Instant};
use proptest::prelude::*;
use world::{A, B, World, ms};

#[test]
fn a_reply_waits_for_the_backup_to_hold_its_cause() {
    let mut world = World::new();
    world.cut = true;
    world.ask(7);
    world.run(ms(50));
    assert!(world.replies.is_empty());

    world.cut = false;
    world.run(ms(10));
    assert_eq!(world.answered(), [7]);
    assert_eq!(world.hosts[B].known, [7]);
}

#[test]
fn a_reply_leaves_after_one_round_trip() {
    let mut world = World::new();
    let asked = world.now;
    world.ask(7);
    world.run(ms(10));
    assert!(world.replies[0].at.saturating_since(asked) <= ms(4));
}

#[test]
fn a_primary_that_slept_finds_its_lease_over() {
    let mut world = World::new();
    world.ask(7);
    world.run(ms(2));
    assert_eq!(world.hosts[A].held(), 1);
    world.hosts[A].asleep = true;
    world.run(ms(3000));
    assert_eq!(world.live(), [A, B], "the sleeper does not know yet");

    let woken = world.now;
    world.hosts[A].asleep = false;
    world.run(ms(500));
    assert_eq!(world.live(), [B]);
    assert!(
        !world
            .replies
            .iter()
            .any(|reply| reply.host == A && reply.at > woken)
    );
    assert_eq!(world.hosts[B].known, [7]);
}

#[test]
fn both_sides_claim_and_exactly_one_lives() {
    let mut world = World::new();
    world.cut = true;
    world.run(ms(1000));
    assert_eq!(world.live().len(), 1);
    assert_eq!(world.promoted.len(), 1);
    assert_eq!(world.hosts.iter().filter(|host| host.is_halted()).count(), 1);
}

#[test]
fn an_unreachable_arbiter_means_nobody_releases() {
    let mut world = World::new();
    world.cut = true;
    world.arbiter_reachable = false;
    world.ask(7);
    world.run(ms(5000));
    assert!(world.replies.is_empty());
    assert!(world.promoted.is_empty());

    world.arbiter_reachable = true;
    world.run(ms(500));
    assert_eq!(world.promoted.len(), 1);
    assert_eq!(world.live().len(), 1);
}

#[test]
fn a_primary_that_won_releases_what_it_held_for_its_backup() {
    let mut world = World::new();
    world.hosts[B].asleep = true;
    world.ask(7);
    world.run(ms(50));
    assert!(world.replies.is_empty());
    world.run(ms(1000));
    assert_eq!(world.answered(), [7]);
    assert_eq!(world.live(), [A]);
}

#[test]
fn a_backup_that_lags_replays_to_the_end_before_it_lives() {
    let mut world = World::new();
    world.hosts[B].replay_per_step = 0;
    (1..=100).for_each(|request| world.ask(request));
    world.run(ms(20));
    world.hosts[A].asleep = true;
    world.run(ms(1000));
    assert!(world.promoted.is_empty());

    world.hosts[B].replay_per_step = 1;
    world.run(ms(1000));
    assert_eq!(world.hosts[B].known, (1..=100).collect::<Vec<_>>());
    assert_eq!(world.live().last(), Some(&B));
}

#[test]
fn a_backup_whose_connection_breaks_waits_for_the_end_of_the_lease() {
    let mut world = World::new();
    let broke = world.now;
    world.ask(7);
    world.run(ms(2));
    world.broken = true;
    world.run(ms(1000));
    let (survivor, began) = world.promoted[0];
    assert_eq!(survivor, B);
    assert!(began.saturating_since(broke) >= ms(100));
    assert!(
        world
            .replies
            .iter()
            .all(|reply| reply.host == B || reply.at < began)
    );
}

#[test]
fn a_short_cut_loses_nobody() {
    let mut world = World::new();
    world.cut = true;
    world.run(ms(80));
    world.cut = false;
    world.run(ms(1000));
    assert!(world.promoted.is_empty());
    assert_eq!(world.live(), [A]);
}

/// What can happen to a pair from one moment to the next.
#[derive(Clone, Debug)]
enum Event {
    Ask,
    Cut(bool),
    Sleep(usize, bool),
    Arbiter(bool),
    Lag(usize),
    /// The backup alone sees its connection break, as when the link eats what the primary says.
    Break,
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        6 => Just(Event::Ask),
        2 => any::<bool>().prop_map(Event::Cut),
        2 => (0_usize..2, any::<bool>()).prop_map(|(host, asleep)| Event::Sleep(host, asleep)),
        1 => any::<bool>().prop_map(Event::Arbiter),
        1 => (0_usize..4).prop_map(Event::Lag),
        1 => Just(Event::Break),
    ];
    proptest::collection::vec((0_u64..150, event), 1..60)
}

fn happen(world: &mut World, number: u64, event: &Event) {
    match *event {
        Event::Ask => world.ask(number),
        Event::Cut(cut) => world.cut = cut,
        Event::Sleep(host, asleep) => world.hosts[host].asleep = asleep,
        Event::Arbiter(reachable) => world.arbiter_reachable = reachable,
        Event::Lag(replay) => world.hosts[B].replay_per_step = replay,
        Event::Break => world.broken = true,
    }
}

/// The end of every story: all is well again, and time passes.
fn settle(world: &mut World) {
    world.cut = false;
    world.arbiter_reachable = true;
    world.hosts.iter_mut().for_each(|host| {
        host.asleep = false;
        host.replay_per_step = usize::MAX;
    });
    world.run(Duration::from_secs(2));
}

proptest! {
    #[test]
    fn whatever_happens_the_one_that_lives_knows_all_that_was_answered(events in events()) {
        let mut world = World::new();
        for (number, (pause, event)) in events.iter().enumerate() {
            happen(&mut world, number as u64, event);
            world.run(ms(*pause));
        }
        settle(&mut world);

        prop_assert_eq!(world.live().len(), 1);
        let survivor = world.live()[0];
        let known = &world.hosts[survivor].known;
        prop_assert!(world.replies.iter().all(|reply| known.contains(&reply.to)));
        prop_assert!(world.promoted.len() <= 1);
        // The other one's last reply left before the survivor's reign began.
        let began = world.promoted.first().map_or(Instant::ZERO, |(_, at)| *at);
        let late = world.replies.iter().any(|reply| reply.host != survivor && reply.at >= began);
        prop_assert!(!late);
    }
}

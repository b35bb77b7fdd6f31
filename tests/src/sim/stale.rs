//! Words of sessions that are over, kept to be said again in a later one. A transport that duplicates a connection, or
//! a host that goes on talking, brings them; a session of a later term ignores them.

use lockstep_protocol::ids::Term;
use lockstep_protocol::message::{Ack, Heartbeat};

use super::dice::Dice;
use super::wires::Word;

/// So many of each kind are remembered.
const REMEMBERED: usize = 16;

/// What was said once.
#[derive(Debug, Default)]
pub(crate) struct OldWords {
    acks: Vec<Ack>,
    beats: Vec<Heartbeat>,
    said: usize,
}

impl OldWords {
    /// Something is said that may be said again. Not all of it is remembered, and the newest takes the place of some
    /// older one.
    pub(crate) fn note(&mut self, word: &Word) {
        self.said += 1;
        let place = self.said % REMEMBERED;
        match word {
            Word::Ack(ack) => keep(&mut self.acks, place, *ack),
            Word::Beat(beat) => keep(&mut self.beats, place, *beat),
            _ => {}
        }
    }

    /// A word of a backup from before `term`.
    pub(crate) fn to_primary(&self, dice: &mut Dice, term: Term) -> Option<Word> {
        let old = self
            .acks
            .iter()
            .filter(|ack| ack.term < term)
            .map(|ack| Word::Ack(*ack));
        let beats = self
            .beats
            .iter()
            .filter(|beat| beat.term < term && beat.echo.is_some());
        let all: Vec<_> = old.chain(beats.map(|beat| Word::Beat(*beat))).collect();
        pick(dice, &all)
    }

    /// A word of a primary from before `term`.
    pub(crate) fn to_backup(&self, dice: &mut Dice, term: Term) -> Option<Word> {
        let beats = self
            .beats
            .iter()
            .filter(|beat| beat.term < term && beat.echo.is_none());
        let all: Vec<_> = beats.map(|beat| Word::Beat(*beat)).collect();
        pick(dice, &all)
    }
}

fn keep<T>(kept: &mut Vec<T>, place: usize, word: T) {
    if kept.len() < REMEMBERED {
        kept.push(word);
    } else {
        kept[place] = word;
    }
}

fn pick(dice: &mut Dice, all: &[Word]) -> Option<Word> {
    (!all.is_empty()).then(|| all[dice.below(all.len() as u64) as usize].clone())
}

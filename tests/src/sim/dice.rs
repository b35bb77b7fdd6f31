//! The only source of chance in the simulator: one seed, one sequence, on every machine and for ever.
//!
//! Everything in a simulated world that is not decided by a machine is thrown here. It is splitmix64, written out,
//! because a kept seed must mean the same after every update of every dependency.

/// A sequence of throws.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The sequence of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `range`, both ends included.
    pub(crate) fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.below(most - least + 1)
    }

    /// A number from `range`, small ones as likely as large ones of the same order of magnitude.
    pub(crate) fn scaled(&mut self, (least, most): (u64, u64)) -> u64 {
        let octaves = (most / least.max(1)).max(1).ilog2();
        let low = least.max(1) << self.below(u64::from(octaves) + 1);
        self.between((low.min(most), (low * 2).min(most)))
    }

    /// True in `of_thousand` of thousand cases.
    pub(crate) fn chance(&mut self, of_thousand: u64) -> bool {
        self.below(1000) < of_thousand
    }

    /// One of `choices`, of which there is one at least.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Turns a number into one that shows nothing of it.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut dice = Dice::of(1);
        assert_eq!(dice.any(), 0x910a_2dec_8902_5cc1);
        assert_eq!(dice.between((5, 5)), 5);
    }

    #[test]
    fn scaled_numbers_stay_within_their_range() {
        let mut dice = Dice::of(7);
        let all = std::iter::repeat_with(|| dice.scaled((3, 1000)));
        assert!(all.take(10_000).all(|number| (3..=1000).contains(&number)));
    }
}

//! Randomness, all of it from the boot page's seed. For sequence numbers, hashes and nonces; never for secrets.

/// A generator (splitmix64).
#[derive(Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator that is determined by its seed.
    pub fn new(seed: &[u8; 32]) -> Self {
        Prng(xxhash_rust::xxh3::xxh3_64(seed))
    }

    /// Draws a number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Scatters a number; different numbers stay different.
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

//! What was written reads back, in pieces of any size; what was never written is refused and costs nothing.

mod messages;
mod records;

use bytes::Bytes;

/// Cuts `bytes` into pieces of the given sizes, over and over.
fn pieces(bytes: &Bytes, sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = bytes.clone();
    let sizes = sizes.iter().cycle();
    sizes
        .map_while(|size| (!rest.is_empty()).then(|| rest.split_to((*size).min(rest.len()))))
        .collect()
}

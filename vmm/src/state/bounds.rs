//! Bounds of what a state may say, kept while it is decoded: a number that no chip can hold, or more of something than
//! there can be, is no state, whatever its checksum says. The types of a state name these functions in their fields.

use serde::de::{Deserialize, Deserializer, Error};

/// A number from `MIN` to `MAX`.
pub(crate) fn within<'de, const MIN: i64, const MAX: i64, T, D>(from: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Copy + TryInto<i128>,
    D: Deserializer<'de>,
{
    let value = T::deserialize(from)?;
    match lies_within(value, MIN, MAX) {
        true => Ok(value),
        false => Err(D::Error::custom("a number lies out of its bounds")),
    }
}

/// The same where there may be none.
pub(crate) fn within_if_any<'de, const MIN: i64, const MAX: i64, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de> + Copy + TryInto<i128>,
    D: Deserializer<'de>,
{
    let value = Option::<T>::deserialize(from)?;
    match value.is_none_or(|value| lies_within(value, MIN, MAX)) {
        true => Ok(value),
        false => Err(D::Error::custom("a number lies out of its bounds")),
    }
}

/// A list of at most `MAX`.
pub(crate) fn no_longer<'de, const MAX: usize, T, L, D>(from: D) -> Result<L, D::Error>
where
    T: Deserialize<'de>,
    L: From<Vec<T>>,
    D: Deserializer<'de>,
{
    let list = Vec::<T>::deserialize(from)?;
    match list.len() <= MAX {
        true => Ok(list.into()),
        false => Err(D::Error::custom("a list is too long")),
    }
}

fn lies_within<T: TryInto<i128>>(value: T, min: i64, max: i64) -> bool {
    value
        .try_into()
        .is_ok_and(|value| (i128::from(min)..=i128::from(max)).contains(&value))
}

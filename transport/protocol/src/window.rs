//! The window of a live VM: in which order its inputs are logged, and what the outputs made there need (I4). The
//! recorder of a live host asks; `primary` appends, `outbox` holds. The counterpart on a backup is `replay`.

use crate::ids::{GuestTime, LogOffset};
use crate::record::Input;

/// What is logged in one window, in this order. With `mark`, an output was called for in the exit that opened it:
/// the mark comes first, so that the output waits for this very position and for no more. A digest is of the VM before
/// anything enters.
pub fn entries<'a>(
    mark: bool,
    digest: Option<&'a [u8]>,
    tick: Option<GuestTime>,
    inputs: impl Iterator<Item = Input<&'a [u8]>>,
) -> impl Iterator<Item = Input<&'a [u8]>> {
    mark.then_some(Input::Mark)
        .into_iter()
        .chain(digest.map(|bytes| Input::Digest { bytes }))
        .chain(tick.map(|time| Input::Tick { time }))
        .chain(inputs)
}

/// What an output needs that was called for in the exit of a window whose entries begin at `start` with a mark:
/// that mark (I4).
pub fn needs(start: LogOffset) -> LogOffset {
    start.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_needs_the_mark_of_its_window_and_nothing_behind_it() {
        let time = GuestTime::new(5);
        let typed = Input::Console { bytes: &b"x"[..] };
        let digest = Input::Digest { bytes: &b"d"[..] };
        let logged: Vec<_> = entries(true, Some(b"d"), Some(time), [typed.clone()].into_iter()).collect();
        assert_eq!(logged, [Input::Mark, digest, Input::Tick { time }, typed]);
        assert_eq!(needs(LogOffset::new(3)), LogOffset::new(4));
    }
}

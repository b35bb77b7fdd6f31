//! The window of a live VM: in which order its inputs are logged, and what the outputs made there need (I4). The
//! recorder of a live host asks; `primary` appends, `outbox` holds. The counterpart on a backup is `replay`.

use crate::ids::{GuestTime, LogOffset};
use crate::record::Input;

/// What is logged in one window, in this order. A digest is of the VM before anything enters. With `mark`, an output was
/// called for in the exit that opened it: the output waits for this very position and for nothing that entered there. The
/// digest stands before the mark: who has the mark can tell whether its VM is the one that made the output (I17).
pub fn entries<'a>(
    mark: bool,
    digest: Option<&'a [u8]>,
    tick: Option<GuestTime>,
    inputs: impl Iterator<Item = Input<&'a [u8]>>,
) -> impl Iterator<Item = Input<&'a [u8]>> {
    digest
        .map(|bytes| Input::Digest { bytes })
        .into_iter()
        .chain(mark.then_some(Input::Mark))
        .chain(tick.map(|time| Input::Tick { time }))
        .chain(inputs)
}

/// What an output needs that was called for in the exit of a window whose entries begin at `start`: the mark (I4), and the
/// digest before it if there is one.
pub fn needs(start: LogOffset, has_digest: bool) -> LogOffset {
    if has_digest {
        start.next().next()
    } else {
        start.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_needs_the_digest_and_the_mark_of_its_window_and_nothing_behind_them() {
        let time = GuestTime::new(5);
        let typed = Input::Console { bytes: &b"x"[..] };
        let digest = Input::Digest { bytes: &b"d"[..] };
        let logged: Vec<_> = entries(true, Some(b"d"), Some(time), [typed.clone()].into_iter()).collect();
        assert_eq!(logged, [digest, Input::Mark, Input::Tick { time }, typed]);
        assert_eq!(needs(LogOffset::new(3), true), LogOffset::new(5));
    }

    #[test]
    fn an_output_without_a_digest_needs_its_mark() {
        let logged: Vec<_> = entries(true, None, None, std::iter::empty()).collect();
        assert_eq!(logged, [Input::Mark]);
        assert_eq!(needs(LogOffset::new(3), false), LogOffset::new(4));
    }
}

//! Redis's glob patterns, for KEYS, SCAN and CONFIG GET. Pure; takes time in proportion to pattern times text at worst.

/// Whether the text matches the pattern: `*`, `?`, `[a-c]`, `[^x]` and `\` before a literal.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to take up again, after the last star, when the rest does not match.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', after @ ..] = pattern {
            pattern = after;
            star = Some((after, text));
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        let stepped = match text {
            [byte, rest @ ..] => one(pattern, *byte).map(|after| (after, rest)),
            [] => None,
        };
        (pattern, text) = match (stepped, star) {
            (Some(next), _) => next,
            (None, Some((after, [_, rest @ ..]))) => {
                star = Some((after, rest));
                (after, rest)
            }
            (None, _) => return false,
        };
    }
}

/// Matches one byte with the front of the pattern; answers the rest of the pattern.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [] => None,
        [b'?', after @ ..] => Some(after),
        [b'[', after @ ..] => set(after, byte),
        [b'\\', literal, after @ ..] => (*literal == byte).then_some(after),
        [literal, after @ ..] => (*literal == byte).then_some(after),
    }
}

fn set(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match pattern {
        [b'^', after @ ..] => (true, after),
        _ => (false, pattern),
    };
    let mut found = false;
    rest = loop {
        rest = match rest {
            // An open set ends with the pattern, as in Redis.
            [] => break rest,
            [b']', after @ ..] => break after,
            [b'\\', literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
            [low, b'-', high, after @ ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                after
            }
            [literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
        };
    };
    (found != negated).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::matches;
    use proptest::prelude::*;

    #[test]
    fn stars_and_sets_match_as_in_redis() {
        let cases: [(&str, &str, bool); 10] = [
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            (r"a\*", "a*", true),
            ("key:[0-9", "key:5", true),
        ];
        assert_eq!(
            cases.map(|(pattern, text, _)| matches(pattern.as_bytes(), text.as_bytes())),
            cases.map(|case| case.2)
        );
    }

    proptest! {
        #[test]
        fn any_pattern_comes_to_an_end(pattern in any::<std::vec::Vec<u8>>(), text in any::<std::vec::Vec<u8>>()) {
            let _ = matches(&pattern, &text);
        }
    }
}

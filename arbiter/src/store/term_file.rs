//! The text in a term file: which term of which VM, whose, and a checksum.
//!
//! The file store writes and reads it. There is exactly one text for each tenure, so a file that was torn,
//! edited or copied from another VM is never taken for a good one.

use lockstep_protocol::ids::{Holder, Incarnation, NodeName, Term};
use xxhash_rust::xxh3::xxh3_64;

use crate::register::{Tenure, VmName};

/// No term file is longer: the longest has well under 300 bytes.
pub const MAX_TERM_FILE: usize = 512;

/// The first line. A later program that writes something else writes another number.
const VERSION_LINE: &str = "lockstep-term 1";

/// The text for this tenure.
pub fn encode(vm: &VmName, tenure: &Tenure) -> String {
    let Tenure {
        term,
        holder: Holder { node, incarnation },
    } = tenure;
    let body = format!("{VERSION_LINE}\nvm {vm}\nterm {term}\nnode {node}\nincarnation {incarnation}\n");
    let checksum = xxh3_64(body.as_bytes());
    format!("{body}xxh3 {checksum:016x}\n")
}

/// Who holds `term` of `vm` by this text, or what is wrong with it.
pub fn decode(vm: &VmName, term: Term, bytes: &[u8]) -> Result<Holder, String> {
    if bytes.len() > MAX_TERM_FILE {
        return Err(format!("it has more than {MAX_TERM_FILE} bytes"));
    }
    let text = str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let first = text.lines().next().unwrap_or("");
    if first != VERSION_LINE {
        return Err(format!("its first line is not {VERSION_LINE:?}"));
    }
    let field = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.ok_or_else(|| format!("it has no line {name:?}"))
    };
    let node = NodeName::new(field("node")?).map_err(|error| error.to_string())?;
    let incarnation: Incarnation = field("incarnation")?
        .parse()
        .map_err(|_| "its incarnation is not 32 hexadecimal digits".to_owned())?;
    let holder = Holder { node, incarnation };
    let expected = encode(
        vm,
        &Tenure {
            term,
            holder: holder.clone(),
        },
    );
    if text == expected {
        return Ok(holder);
    }
    Err(describe(vm, term, field("vm").ok(), field("term").ok()))
}

/// The likeliest reason why a readable text is not the expected one.
fn describe(vm: &VmName, term: Term, its_vm: Option<&str>, its_term: Option<&str>) -> String {
    match (its_vm, its_term) {
        (Some(other), _) if other != vm.as_str() => format!("it is of the VM {other:?}"),
        (_, Some(other)) if other != term.to_string() => format!("it is of term {other:?}"),
        _ => "its checksum does not fit".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vm() -> VmName {
        VmName::new("shop").unwrap()
    }

    fn text(term: u64) -> String {
        let holder = Holder {
            node: NodeName::new("a").unwrap(),
            incarnation: Incarnation::new(7),
        };
        encode(
            &vm(),
            &Tenure {
                term: Term::new(term),
                holder,
            },
        )
    }

    #[test]
    fn a_file_of_another_term_or_vm_is_named_as_such() {
        let other = VmName::new("bank").unwrap();

        assert_eq!(
            decode(&vm(), Term::new(3), text(2).as_bytes()),
            Err("it is of term \"2\"".to_owned())
        );
        assert_eq!(
            decode(&other, Term::new(2), text(2).as_bytes()),
            Err("it is of the VM \"shop\"".to_owned())
        );
    }

    #[test]
    fn the_longest_names_fit() {
        let long = "a".repeat(32);
        let holder = Holder {
            node: NodeName::new(&long).unwrap(),
            incarnation: Incarnation::new(u128::MAX),
        };
        let vm = VmName::new(&long).unwrap();

        let text = encode(
            &vm,
            &Tenure {
                term: Term::MAX,
                holder: holder.clone(),
            },
        );

        assert!(text.len() <= MAX_TERM_FILE);
        assert_eq!(decode(&vm, Term::MAX, text.as_bytes()), Ok(holder));
    }

    proptest! {
        #[test]
        fn a_torn_file_is_never_good(length in 0_usize..100) {
            let whole = text(5);
            prop_assume!(length < whole.len());
            prop_assert!(decode(&vm(), Term::new(5), &whole.as_bytes()[..length]).is_err());
        }

        #[test]
        fn a_file_with_one_changed_byte_is_never_good(at in 0_usize..100, change in 1_u8..=255) {
            let mut bytes = text(5).into_bytes();
            prop_assume!(at < bytes.len());
            bytes[at] ^= change;
            prop_assert!(decode(&vm(), Term::new(5), &bytes).is_err());
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(decode(&vm(), Term::new(1), &noise).is_err());
        }
    }
}

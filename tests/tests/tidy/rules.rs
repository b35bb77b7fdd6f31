//! The rules, one function each, from a file to what is wrong with it. The stories in `main.rs` apply them to every
//! file of the workspace, and to bad texts made up for the purpose. They read, and never change, anything.

use crate::source::{Source, end_of_item, line_of, words};

/// The files that may say `unsafe`. A new one needs a reason that ARCHITECTURE.md can state.
pub(crate) const UNSAFE_FILES: [&str; 11] = [
    "vmm/src/kvm.rs",
    "vmm/src/vcpu/interrupt.rs",
    "vmm/src/vcpu/xsave.rs",
    "vhost-net-ft/src/tap.rs",
    "vmm/guest/src/heap.rs",
    "vmm/guest/src/machine.rs",
    "vmm/guest/src/port.rs",
    "vmm/guest/src/virtio/mmio.rs",
    "vmm/guest/src/virtio/queue.rs",
    "vmm/guest/src/virtio/queue/tests.rs",
    "tests/guest/rdtsc.rs",
];
/// A file that ships has at most so many lines, its tests apart: it can be read in one sitting.
pub(crate) const FILE_LINES: usize = 400;
/// A function has at most so many lines: it can be seen at once.
pub(crate) const FUNCTION_LINES: usize = 70;
/// Longer test modules live in a file of their own.
pub(crate) const INLINE_TEST_LINES: usize = 150;

/// Something that is not tidy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// In which line, from 1.
    pub(crate) line: usize,
    /// What.
    pub(crate) what: String,
}

fn finding(line: usize, what: impl Into<String>) -> Finding {
    Finding {
        line,
        what: what.into(),
    }
}

/// Every rule about Rust files.
pub(crate) const RUST: [fn(&Source) -> Vec<Finding>; 8] = [
    opens_with_its_purpose,
    is_short,
    has_short_functions,
    has_short_inline_tests,
    leaves_nothing_to_chance,
    says_unsafe_only_where_named,
    owns_its_promises,
    gives_reasons_for_exceptions,
];

/// The first line says what the file is.
pub(crate) fn opens_with_its_purpose(source: &Source) -> Vec<Finding> {
    match source.text.starts_with("//!") || source.text.starts_with("#![") {
        true => vec![],
        false => vec![finding(
            1,
            "does not open with //!: what is it, who calls it, what does it never do",
        )],
    }
}

/// No more lines than one can read in one sitting.
pub(crate) fn is_short(source: &Source) -> Vec<Finding> {
    if source.shipped.trim().is_empty() {
        return vec![];
    }
    let lines = source.shipped.lines().count() - source.inline_test_lines;
    match lines > FILE_LINES {
        true => vec![finding(
            1,
            format!("has {lines} lines, {FILE_LINES} are allowed: split it by noun"),
        )],
        false => vec![],
    }
}

/// No function is longer than a screen, in tests neither.
pub(crate) fn has_short_functions(source: &Source) -> Vec<Finding> {
    let code = &source.code;
    words(code, "fn")
        .filter(|at| {
            code[at + 2..]
                .trim_start()
                .starts_with(|c: char| c.is_alphabetic() || c == '_')
        })
        .filter_map(|at| {
            let lines = code[at..end_of_item(code, at)].lines().count();
            let name = code[at + 2..].split(['(', '<']).next().unwrap_or_default().trim();
            (lines > FUNCTION_LINES).then(|| {
                let what = format!("fn {name} has {lines} lines, {FUNCTION_LINES} are allowed");
                finding(line_of(code, at), what)
            })
        })
        .collect()
}

/// Long test modules do not hide the code that they test.
pub(crate) fn has_short_inline_tests(source: &Source) -> Vec<Finding> {
    let tests = source.inline_test_lines;
    match tests > INLINE_TEST_LINES {
        true => vec![finding(
            1,
            format!("has {tests} lines of inline tests: move them to NAME/tests.rs"),
        )],
        false => vec![],
    }
}

/// What may fail says how it fails, and nothing unfinished ships.
pub(crate) fn leaves_nothing_to_chance(source: &Source) -> Vec<Finding> {
    let mut found = vec![];
    for (pattern, instead) in [
        (".unwrap()", "return an error, or expect(\"why it cannot fail\")"),
        (".unwrap_err()", "match on it"),
        ("todo!", "finish it"),
        ("unimplemented!", "finish it"),
        ("dbg!", "take it out"),
    ] {
        for (line, text) in source.shipped.lines().enumerate() {
            if text.contains(pattern) {
                found.push(finding(
                    line + 1,
                    format!("{pattern} in code that ships: {instead}"),
                ));
            }
        }
    }
    found
}

/// `unsafe` stays in its files.
pub(crate) fn says_unsafe_only_where_named(source: &Source) -> Vec<Finding> {
    if UNSAFE_FILES.contains(&source.path.as_str()) {
        return vec![];
    }
    words(&source.code, "unsafe")
        .map(|at| finding(line_of(&source.code, at), "unsafe outside the named files"))
        .collect()
}

/// A promise in a comment has somebody who keeps it.
pub(crate) fn owns_its_promises(source: &Source) -> Vec<Finding> {
    ["TODO", "FIXME", "XXX"]
        .iter()
        .flat_map(|word| words(&source.comments, word).map(move |at| (word, at)))
        .filter(|(word, at)| {
            let owner = source.comments[at + word.len()..].strip_prefix('(');
            owner
                .and_then(|text| text.split_once(')'))
                .is_none_or(|(name, _)| name.trim().is_empty())
        })
        .map(|(word, at)| {
            finding(
                line_of(&source.comments, at),
                format!("{word} without an owner: {word}(name)"),
            )
        })
        .collect()
}

/// Who switches a lint off says why.
pub(crate) fn gives_reasons_for_exceptions(source: &Source) -> Vec<Finding> {
    ["[allow(", "[expect("]
        .iter()
        .flat_map(|attribute| source.code.match_indices(attribute))
        .filter(|(at, _)| {
            let end = source.code[*at..]
                .find(")]")
                .map_or(source.code.len(), |length| at + length);
            words(&source.code[*at..end], "reason").next().is_none()
        })
        .map(|(at, _)| {
            finding(
                line_of(&source.code, at),
                "a lint is switched off without a reason",
            )
        })
        .collect()
}

/// Of any text file: no blanks at the ends of lines, no tabs, no carriage returns, and a last line that ends.
pub(crate) fn is_clean_text(text: &str) -> Vec<Finding> {
    let mut found: Vec<_> = text
        .split('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with([' ', '\t', '\r']) || line.contains('\t'))
        .map(|(line, _)| finding(line + 1, "has a tab, or blanks at the end of the line"))
        .collect();
    if !text.is_empty() && !text.ends_with('\n') {
        found.push(finding(text.lines().count(), "does not end with a new line"));
    }
    found
}

/// Of a Markdown file: files that it names exist. `exists` is asked with links and with paths in backticks.
pub(crate) fn names_only_what_exists(text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut found = vec![];
    for (line, text) in text.lines().enumerate() {
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
        let paths = text
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|word| word.split("::").next().unwrap_or(word));
        let paths = paths.filter(|path| is_one_of_our_paths(path));
        for path in links.chain(paths).filter(|path| !exists(path)) {
            found.push(finding(line + 1, format!("names {path}, which does not exist")));
        }
    }
    found
}

/// A user's own files are named by an absolute path or without a folder; any `.rs` is ours.
fn is_one_of_our_paths(path: &str) -> bool {
    let plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let ours = [".md", ".toml"].iter().any(|end| path.ends_with(end))
        && path.contains('/')
        && !path.starts_with('/');
    plain && !path.starts_with('.') && (path.ends_with(".rs") || ours)
}

/// Of the root of a crate: it forbids `unsafe`, or, where a named file needs it, denies it to all others.
pub(crate) fn guards_against_unsafe(source: &Source) -> Vec<Finding> {
    let library = source.path.strip_suffix("lib.rs");
    let has_unsafe = library.is_some_and(|folder| UNSAFE_FILES.iter().any(|file| file.starts_with(folder)));
    let guard = match has_unsafe {
        true => "#![deny(unsafe_code)]",
        false => "#![forbid(unsafe_code)]",
    };
    match source.code.contains(guard) {
        true => vec![],
        false => vec![finding(1, format!("the root of a crate must say {guard}"))],
    }
}

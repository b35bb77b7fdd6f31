//! A Rust file as the rules see it: code, comments and texts apart, and the part that ships apart from its tests.
//!
//! The rules call it. It is a lexer, not a parser: it knows where comments, texts and braces are, and nothing else.

/// One file, split by what its characters are. All views have the lines of the file, blanks where the others are.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Where it lies, from the root of the workspace.
    pub(crate) path: String,
    /// As it is written.
    pub(crate) text: String,
    /// Without comments and without what stands in quotes.
    pub(crate) code: String,
    /// `code` without items behind `#[cfg(test)]`; blank for a file of tests.
    pub(crate) shipped: String,
    /// How many lines of a file that ships are behind `#[cfg(test)]`.
    pub(crate) inline_test_lines: usize,
    /// Comments only.
    pub(crate) comments: String,
}

impl Source {
    /// Splits `text`; `is_test` says that nothing of it ships.
    pub(crate) fn new(path: &str, text: &str, is_test: bool) -> Self {
        let (code, comments) = split(text);
        let (shipped, inline_test_lines) = match is_test {
            true => (blank(&code).collect(), 0),
            false => without_tests(&code),
        };
        Self {
            path: path.into(),
            text: text.into(),
            code,
            shipped,
            inline_test_lines,
            comments,
        }
    }

    /// Names of modules that this file declares behind `#[cfg(test)]` and keeps in files of their own.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        test_items(&self.code)
            .filter_map(|item| item.trim().strip_suffix(';')?.rsplit_once("mod "))
            .map(|(_, name)| name.trim().to_owned())
            .collect()
    }
}

/// Every place of `word` in `code` that is not part of a longer name.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !is_name(code[..*at].chars().next_back()))
        .filter(move |at| !is_name(code[at + word.len()..].chars().next()))
}

/// Which line a place is in, from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Where the item that begins at `start` ends: behind its `;` or its last `}`.
pub(crate) fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0_i32;
    for (at, character) in code[start..].char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(character, ';' | '}') {
            return start + at + 1;
        }
    }
    code.len()
}

fn test_items(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices(TEST_ONLY).map(|(at, _)| {
        let start = at + TEST_ONLY.len();
        &code[start..end_of_item(code, start)]
    })
}

/// `code` with blanks for what is behind `#[cfg(test)]`, and how many lines that is.
fn without_tests(code: &str) -> (String, usize) {
    let (mut kept, mut lines, mut rest) = (String::new(), 0, 0);
    for (at, _) in code.match_indices(TEST_ONLY) {
        if at >= rest {
            let end = end_of_item(code, at + TEST_ONLY.len());
            kept.push_str(&code[rest..at]);
            kept.extend(blank(&code[at..end]));
            lines += code[at..end].lines().count();
            rest = end;
        }
    }
    kept.push_str(&code[rest..]);
    (kept, lines)
}

/// Blanks, but the same lines.
fn blank(text: &str) -> impl Iterator<Item = char> {
    text.chars()
        .map(|character| if character == '\n' { '\n' } else { ' ' })
}

/// Code and comments of `text`.
fn split(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = piece(rest, code.chars().next_back());
        let (piece, after) = rest.split_at(length.max(first.len_utf8()));
        match kind {
            Kind::Code => {
                code.push_str(piece);
                comments.extend(blank(piece));
            }
            Kind::Comment => {
                code.extend(blank(piece));
                comments.push_str(piece);
            }
            Kind::Quoted => {
                code.extend(blank(piece));
                comments.extend(blank(piece));
            }
        }
        rest = after;
    }
    (code, comments)
}

enum Kind {
    Code,
    Comment,
    Quoted,
}

/// What `rest` begins with, and how many bytes belong to that.
fn piece(rest: &str, before: Option<char>) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    if rest.starts_with('"') {
        return (Kind::Quoted, quoted(rest, '"'));
    }
    if rest.starts_with('\'') && is_character(rest) {
        return (Kind::Quoted, quoted(rest, '\''));
    }
    let name_goes_on = before.is_some_and(|c| c.is_alphanumeric() && !matches!(c, 'b' | 'c') || c == '_');
    match raw(rest) {
        Some(length) if !name_goes_on => (Kind::Quoted, length),
        _ => (Kind::Code, 1),
    }
}

/// Length of a text in plain quotes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Whether this quote begins a character and not a lifetime.
fn is_character(rest: &str) -> bool {
    let mut characters = rest.chars().skip(1);
    match characters.next() {
        Some('\\') => true,
        Some(_) => characters.next() == Some('\''),
        None => false,
    }
}

/// Length of a raw text, as in `r#"..."#`.
fn raw(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?;
    let body = hashes.trim_start_matches('#');
    let count = hashes.len() - body.len();
    let end = format!("\"{}", "#".repeat(count));
    let length = body.strip_prefix('"')?.find(&end)?;
    Some(1 + count + 1 + length + end.len())
}

const TEST_ONLY: &str = "#[cfg(test)]";

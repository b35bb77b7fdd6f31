//! The tree is tidy: the house style, as far as a program can check it, over every file that git tracks.
//!
//! Read `rules.rs` for the rules. Each rule is shown to be able to fail by a bad text, here; the other stories apply
//! all of them to the workspace and tell every finding at once, as FILE:LINE.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod rules;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rules::Finding;
use source::Source;

#[test]
fn every_rust_file_keeps_the_house_style() {
    let sources = rust_sources();
    assert!(
        sources.len() > 100,
        "git told of {} Rust files only",
        sources.len()
    );
    let findings = sources.iter().flat_map(|source| {
        let found = rules::RUST.iter().flat_map(|rule| rule(source));
        told(&source.path, found.collect())
    });
    assert_tidy(findings);
}

#[test]
fn every_crate_forbids_unsafe_code_or_denies_it_outside_the_named_files() {
    let sources = rust_sources();
    let roots = sources.iter().filter(|source| is_crate_root(&source.path));
    let findings = roots.flat_map(|source| told(&source.path, rules::guards_against_unsafe(source)));
    assert_tidy(findings);
}

#[test]
fn every_text_file_is_clean() {
    let texts = tracked().into_iter().filter(|path| is_text(path));
    let findings = texts.flat_map(|path| told(&path, rules::is_clean_text(&read(&path))));
    assert_tidy(findings);
}

#[test]
fn every_file_that_the_documents_name_exists() {
    let files = tracked();
    let exists = |path: &str| {
        let end = format!("/{}", path.trim_end_matches('/'));
        files.iter().any(|file| format!("/{file}").ends_with(&end)) || root().join(path).exists()
    };
    let documents = files.iter().filter(|path| path.ends_with(".md"));
    let findings = documents.flat_map(|path| told(path, rules::names_only_what_exists(&read(path), exists)));
    assert_tidy(findings);
}

#[test]
fn device_processes_pull_in_neither_tokio_nor_quinn() {
    for package in [
        "lockstep-protocol",
        "lockstep-staging",
        "lockstep-image",
        "vhost-net-ft",
        "vhost-blk-ft",
    ] {
        let tree = dependencies_of(package);
        assert!(tree.contains(package), "cargo tree told nothing of {package}");
        let async_crates = ["tokio", "quinn", "rustls"].map(str::to_owned);
        let found: Vec<_> = async_crates.iter().filter(|name| tree.contains(*name)).collect();
        assert!(
            found.is_empty(),
            "{package} depends on {found:?}; only transport/quic and what is above it may"
        );
    }
}

#[test]
fn every_lock_file_fits_the_manifests_beside_it() {
    let locks: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.ends_with("Cargo.lock"))
        .collect();
    assert!(
        locks.len() >= 3,
        "the workspace, the guest and the fuzzer have one: {locks:?}"
    );
    for lock in locks {
        let manifest = lock.replace("Cargo.lock", "Cargo.toml");
        // Fails if the lock would have to change, as the clean clone of CI does.
        output(
            env!("CARGO"),
            &[
                "metadata",
                "--locked",
                "--format-version",
                "1",
                "--manifest-path",
                &manifest,
            ],
        );
    }
}

#[test]
fn one_tls_and_one_memory_model_are_in_the_tree() {
    let lock = read("Cargo.lock");
    let versions = |name: &str| lock.matches(&format!("name = \"{name}\"\n")).count();
    for banned in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys"] {
        assert_eq!(
            versions(banned),
            0,
            "{banned} is in Cargo.lock; deny.toml says why it must not"
        );
    }
    for single in [
        "rustls",
        "ring",
        "vm-memory",
        "vmm-sys-util",
        "virtio-queue",
        "kvm-bindings",
    ] {
        assert_eq!(
            versions(single),
            1,
            "{single} must be in the tree once: its types cross crates"
        );
    }
}

#[test]
fn a_file_that_does_not_say_what_it_is_is_found() {
    assert_found(rules::opens_with_its_purpose, "use std::fs;\n", 1);
}

#[test]
fn a_file_that_is_too_long_is_found_and_its_tests_do_not_count() {
    let line = "const A: u8 = 1;\n";
    assert_found(rules::is_short, &line.repeat(rules::FILE_LINES + 1), 1);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(100));
    assert_eq!(
        rules::is_short(&shipped(&(line.repeat(rules::FILE_LINES - 1) + &tests))),
        []
    );
}

#[test]
fn a_function_that_is_too_long_is_found() {
    let body = "    let brace = '{';\n".repeat(rules::FUNCTION_LINES);
    assert_found(
        rules::has_short_functions,
        &format!("\nfn long() {{\n{body}}}\n"),
        2,
    );
    assert_eq!(
        rules::has_short_functions(&shipped("fn short(callback: fn(u8)) -> [u8; 2] {\n}\n")),
        []
    );
}

#[test]
fn long_tests_beside_the_code_are_found() {
    let tests = "    // step\n".repeat(rules::INLINE_TEST_LINES);
    let text = format!("fn short() {{}}\n#[cfg(test)]\nmod tests {{\n{tests}}}\n");
    assert_found(rules::has_short_inline_tests, &text, 1);
}

#[test]
fn an_unwrap_in_code_that_ships_is_found_and_one_in_a_test_or_a_text_is_not() {
    assert_found(rules::leaves_nothing_to_chance, "\nfn f() { g().unwrap() }\n", 2);
    assert_found(rules::leaves_nothing_to_chance, "fn f() { todo!() }\n", 1);
    assert_found(
        rules::leaves_nothing_to_chance,
        "#[cfg(test)]\nmod a {\n}\nfn f() { dbg!(1) }\n",
        4,
    );
    let fine = "//! `x.unwrap()`\nconst A: &str = r#\"todo!() \"quoted\" \"#;\n#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }\n";
    assert_eq!(rules::leaves_nothing_to_chance(&shipped(fine)), []);
}

#[test]
fn unsafe_outside_the_named_files_is_found() {
    assert_found(
        rules::says_unsafe_only_where_named,
        "\n\nfn f() { unsafe { g() } }\n",
        3,
    );
    let word =
        shipped("#![forbid(unsafe_code)]\n// unsafe\nconst A: char = '\\'';\nconst B: &str = \"unsafe\";\n");
    assert_eq!(rules::says_unsafe_only_where_named(&word), []);
    let named = Source::new(rules::UNSAFE_FILES[0], "fn f() { unsafe { g() } }\n", false);
    assert_eq!(rules::says_unsafe_only_where_named(&named), []);
}

#[test]
fn a_promise_that_nobody_owns_is_found() {
    assert_found(rules::owns_its_promises, "\n// TODO: later\n", 2);
    assert_found(rules::owns_its_promises, "/* FIXME() */\n", 1);
    assert_eq!(
        rules::owns_its_promises(&shipped("// TODO(ada): before the release\nfn todo() {}\n")),
        []
    );
}

#[test]
fn a_lint_that_is_switched_off_without_a_reason_is_found() {
    assert_found(
        rules::gives_reasons_for_exceptions,
        "\n#[allow(dead_code)]\nfn f() {}\n",
        2,
    );
    let reasoned = shipped("#[allow(dead_code, reason = \"each test uses its part\")]\nfn f() {}\n");
    assert_eq!(rules::gives_reasons_for_exceptions(&reasoned), []);
}

#[test]
fn untidy_text_is_found() {
    let lines = |text: &str| {
        rules::is_clean_text(text)
            .iter()
            .map(|found| found.line)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines("a\nb\x20\nc\r\n\td\ne"), [2, 3, 4, 5]);
    assert_eq!(lines("a\n\nb\n"), []);
}

#[test]
fn a_document_that_names_a_file_that_is_gone_is_found() {
    let text = "See `gone.rs::call`\nand [this](docs/gone.md#part), `/etc/lockstep/vm.toml`, [that](https://example.org)\n";
    let found = rules::names_only_what_exists(text, |_| false);
    assert_eq!(found.iter().map(|found| found.line).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rules::names_only_what_exists(text, |_| true), []);
}

#[test]
fn a_crate_that_does_not_guard_against_unsafe_code_is_found() {
    let root = |path: &str, text: &str| rules::guards_against_unsafe(&Source::new(path, text, false)).len();
    assert_eq!(root("arbiter/src/lib.rs", "#![deny(unsafe_code)]\n"), 1);
    assert_eq!(root("arbiter/src/lib.rs", "#![forbid(unsafe_code)]\n"), 0);
    assert_eq!(root("vmm/src/lib.rs", "#![deny(unsafe_code)]\n"), 0);
    assert_eq!(root("vmm/src/main.rs", "#![deny(unsafe_code)]\n"), 1);
    assert_eq!(root("vmm/src/lib.rs", "// #![deny(unsafe_code)]\n"), 1);
}

#[test]
fn the_crate_of_suites_ships_and_folders_of_tests_do_not() {
    assert!(is_in_a_folder_of_tests("arbiter/tests/common/mod.rs"));
    assert!(is_in_a_folder_of_tests("arbiter/src/store/file/tests/model.rs"));
    assert!(is_in_a_folder_of_tests("tests/tests/sim.rs"));
    assert!(!is_in_a_folder_of_tests("tests/src/sim/world.rs"));
    assert!(!is_in_a_folder_of_tests("tests/guest/rdtsc.rs"));
}

fn shipped(text: &str) -> Source {
    Source::new("made/up.rs", text, false)
}

fn assert_found(rule: fn(&Source) -> Vec<Finding>, text: &str, line: usize) {
    let found = rule(&shipped(text));
    assert_eq!(
        found.iter().map(|found| found.line).collect::<Vec<_>>(),
        [line],
        "{found:?} in {text}"
    );
}

fn assert_tidy(findings: impl Iterator<Item = String>) {
    let findings: Vec<_> = findings.collect();
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

fn told(path: &str, findings: Vec<Finding>) -> Vec<String> {
    let tell = |Finding { line, what }: Finding| format!("{path}:{line}: {what}");
    findings.into_iter().map(tell).collect()
}

/// Every Rust file; those that a file declares behind `#[cfg(test)]` count as tests, like those in a crate's `tests`.
fn rust_sources() -> Vec<Source> {
    let paths: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .collect();
    let read_as = |path: &String, is_test| Source::new(path, &read(path), is_test);
    let first: Vec<_> = paths.iter().map(|path| read_as(path, false)).collect();
    let declared: BTreeSet<_> = first.iter().flat_map(test_files_of).collect();
    let is_test = |path: &str| {
        let mut stem = Some(Path::new(path).with_extension(""));
        let mut parents = std::iter::from_fn(|| {
            let this = stem.take()?;
            stem = this.parent().map(Path::to_owned);
            Some(this)
        });
        is_in_a_folder_of_tests(path) || parents.any(|parent| declared.contains(&parent))
    };
    paths.iter().map(|path| read_as(path, is_test(path))).collect()
}

/// Whether a file lies in a crate's folder of tests. The crate that is called `tests` is no such folder: simulator, lab and
/// suites are programs like others.
fn is_in_a_folder_of_tests(path: &str) -> bool {
    let inside = path.strip_prefix("tests/").unwrap_or(path);
    format!("/{inside}").contains("/tests/")
}

/// Paths, without extension, of the test modules that `source` declares.
fn test_files_of(source: &Source) -> Vec<PathBuf> {
    let path = Path::new(&source.path);
    let folder = match path.file_name().and_then(|name| name.to_str()) {
        Some("lib.rs" | "main.rs" | "mod.rs") => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    source
        .test_modules()
        .iter()
        .map(|name| folder.join(name))
        .collect()
}

fn is_crate_root(path: &str) -> bool {
    // The guest is where most of the named files are; what it forbids is in its own lints.
    !path.starts_with("vmm/guest/") && (path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"))
}

fn is_text(path: &str) -> bool {
    path == ".ci/run"
        || [".rs", ".toml", ".md", ".ld"]
            .iter()
            .any(|end| path.ends_with(end))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("Cannot read {path}: {error}"))
}

/// Every file that git tracks and that is still there.
fn tracked() -> Vec<String> {
    // The workspace may belong to another user than the one who tests it.
    let list = output("git", &["-c", "safe.directory=*", "ls-files"]);
    list.lines()
        .filter(|path| root().join(path).is_file())
        .map(str::to_owned)
        .collect()
}

/// Names of all crates that `package` is built from.
fn dependencies_of(package: &str) -> BTreeSet<String> {
    let arguments = [
        "tree",
        "--offline",
        "--package",
        package,
        "--edges",
        "normal,build",
        "--prefix",
        "none",
    ];
    let tree = output(env!("CARGO"), &arguments);
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

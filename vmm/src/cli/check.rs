//! `lockstep check`: tells what this host can and cannot do, each failing line with its remedy.
//!
//! `host.rs` looks at the machine, `node.rs` at what a configuration names. A check tries the real thing where trying
//! leaves no trace, and never changes anything that outlives the command.

mod host;
mod kvm;
mod node;

use std::path::Path;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use lockstep_quic::failure::whole_sentence;
use serde::Serialize;

use crate::config::Config;

/// Checks this host, and with `config` also what `node` of it needs.
pub fn check(config: Option<&Path>, node: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let mut lines = kvm::check();
    lines.extend(host::check());
    if let Some(path) = config {
        lines.extend(check_config(path, node));
    }
    let failed = lines.iter().filter(|line| line.verdict == Verdict::Fail).count();
    if json {
        println!(
            "{}",
            serde_json::to_string(&Report {
                ok: failed == 0,
                lines: &lines
            })?
        );
    } else {
        print_table(&lines);
        match failed {
            0 => println!("This host can run Lockstep."),
            1 => println!("1 line needs its remedy."),
            _ => println!("{failed} lines need their remedies."),
        }
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_config(path: &Path, node: Option<&str>) -> Vec<Line> {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            return vec![Line::fail(
                "configuration",
                whole_sentence(&error),
                "Change the file there",
            )];
        }
    };
    let mut lines = vec![Line::ok("configuration", format!("{} is valid", path.display()))];
    match node.map(|name| config.node(name)) {
        None => {}
        Some(Ok(node)) => lines.extend(node::check(&config, node)),
        Some(Err(error)) => lines.push(Line::fail(
            "node",
            whole_sentence(&error),
            "Name one of these with --node",
        )),
    }
    lines
}

fn print_table(lines: &[Line]) {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    for line in lines {
        table.add_row([line.verdict.word(), line.name.as_str(), line.what.as_str()]);
        if let Some(remedy) = &line.remedy {
            table.add_row(["", "", format!("-> {remedy}").as_str()]);
        }
    }
    println!("{table}");
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    lines: &'a [Line],
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Line {
    name: String,
    verdict: Verdict,
    what: String,
    remedy: Option<String>,
}

impl Line {
    fn ok(name: &str, what: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    /// Lockstep works without it, but something is lost.
    fn note(name: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Note,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(name: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Fail,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Note,
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fail => "FAIL",
        }
    }
}

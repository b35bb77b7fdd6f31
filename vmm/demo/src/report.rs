//! What the demo says in the end: the verdict, as a table for people and as one JSON object for programs.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::args::DemoArgs;
use crate::client::check::Losses;
use crate::clock::ms_between;
use crate::timeline::Seen;

/// The JSON object. Keys are never renamed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Nothing lost, wrong, broken or leaked, and exactly one host live.
    ok: bool,
    seed: u64,
    clients: u16,
    fault: &'static str,
    disk: &'static str,
    vcpus: u8,
    /// Replies received.
    acked_ops: u64,
    /// Acknowledged writes that were missing afterwards.
    lost_ops: u64,
    wrong_replies: u64,
    broken_connections: u64,
    /// The same two, of a guest that was booted anew from the survivor's disk, if that was asked for.
    lost_after_boot: Option<u64>,
    wrong_after_boot: Option<u64>,
    /// The longest gap that any client saw.
    outage_ms: f64,
    /// From the fault until the survivor noticed.
    detect_ms: Option<f64>,
    /// From the fault until the survivor held the next term and its guest was live.
    takeover_ms: Option<f64>,
    replay_ms: Option<f64>,
    claim_ms: Option<f64>,
    promote_ms: Option<f64>,
    ops_per_s_before: f64,
    ops_per_s_after: f64,
    /// Records of the log when the clients started, and when the fault came.
    log_records_at_start: u64,
    log_records: u64,
    log_bytes: u64,
    input_bytes: u64,
    rtt_us: Option<u64>,
    survivor: Option<String>,
    survivor_term: Option<u64>,
    live_hosts: usize,
    /// How the other host ended, or what it does.
    other_host: Option<String>,
    /// Replies that came although both the link and the arbiter were away.
    leaked_ops: u64,
    stories: Vec<String>,
}

impl Report {
    pub(crate) fn new(args: &DemoArgs, seen: Seen) -> Self {
        let since_fault = |what: &str| {
            let (_, status) = seen.survivor.as_ref()?;
            status
                .first(what, seen.fault_boot_ns)
                .map(|at| ms_between(seen.fault_boot_ns, at))
        };
        let takeover = seen
            .survivor
            .as_ref()
            .and_then(|(_, status)| status.takeover.clone());
        let lost_ops = seen.losses.lost;
        let wrong_replies = seen.tally.wrong + seen.losses.wrong;
        let broken_connections = seen.tally.broken;
        Self {
            ok: [lost_ops, wrong_replies, broken_connections, seen.leaked] == [0; 4]
                && seen.live_hosts == 1
                && seen.booted_again.unwrap_or_default() == Losses::default(),
            seed: args.seed,
            clients: args.clients,
            fault: seen.fault.name(),
            disk: args.disk.word(),
            vcpus: args.vcpus,
            acked_ops: seen.tally.acked,
            lost_ops,
            wrong_replies,
            broken_connections,
            lost_after_boot: seen.booted_again.map(|losses| losses.lost),
            wrong_after_boot: seen.booted_again.map(|losses| losses.wrong),
            outage_ms: round(seen.tally.longest_gap.as_secs_f64() * 1e3),
            detect_ms: since_fault("peer_lost").map(round),
            takeover_ms: since_fault("live").or_else(|| since_fault("claimed")).map(round),
            replay_ms: takeover.as_ref().map(|takeover| round(takeover.replay_ms)),
            claim_ms: takeover.as_ref().map(|takeover| round(takeover.claim_ms)),
            promote_ms: takeover.as_ref().map(|takeover| round(takeover.promote_ms)),
            ops_per_s_before: rate(seen.before),
            ops_per_s_after: rate(seen.after),
            log_records_at_start: seen.records_at_start,
            log_records: seen.old.log_end,
            log_bytes: seen.old.log_bytes,
            input_bytes: seen.old.input_bytes,
            rtt_us: seen.old.peer.as_ref().and_then(|peer| peer.rtt_us),
            survivor: seen.survivor.as_ref().map(|(name, _)| name.clone()),
            survivor_term: seen.survivor.as_ref().map(|(_, status)| status.term),
            live_hosts: seen.live_hosts,
            other_host: seen.other,
            leaked_ops: seen.leaked,
            stories: seen.tally.stories,
        }
    }

    /// Says it, and what the process should say with its exit status.
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<ExitCode> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!("{}", self.table());
            for story in &self.stories {
                println!("  {story}");
            }
            println!("{}", self.verdict());
        }
        Ok(if self.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn table(&self) -> Table {
        let ms = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value} ms"));
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.add_row(["replies received", &self.acked_ops.to_string()]);
        table.add_row(["acknowledged writes lost", &self.lost_ops.to_string()]);
        table.add_row(["wrong replies", &self.wrong_replies.to_string()]);
        if let (Some(lost), Some(wrong)) = (self.lost_after_boot, self.wrong_after_boot) {
            table.add_row(["booted again: lost / wrong", &format!("{lost} / {wrong}")]);
        }
        table.add_row([
            "broken connections",
            &format!("{} of {}", self.broken_connections, self.clients),
        ]);
        table.add_row(["longest gap any client saw", &ms(Some(self.outage_ms))]);
        table.add_row(["fault to notice", &ms(self.detect_ms)]);
        table.add_row(["fault to live on the survivor", &ms(self.takeover_ms)]);
        table.add_row([
            "replies a second before / after",
            &format!("{} / {}", self.ops_per_s_before, self.ops_per_s_after),
        ]);
        table.add_row([
            "log bytes for input bytes",
            &format!("{} for {}", self.log_bytes, self.input_bytes),
        ]);
        let survivor = match (&self.survivor, self.survivor_term) {
            (Some(name), Some(term)) => format!("{name}, term {term}"),
            _ => "none".into(),
        };
        table.add_row(["survivor", &survivor]);
        table.add_row(["other host", self.other_host.as_deref().unwrap_or("-")]);
        table
    }

    fn verdict(&self) -> &'static str {
        match (self.ok, self.live_hosts) {
            (true, _) => "No client noticed.",
            (false, 0) => "FAILED: no host is live.",
            (false, 1) if self.leaked_ops > 0 => "FAILED: a host went on without a term.",
            (false, 1) if self.lost_after_boot > Some(0) || self.wrong_after_boot > Some(0) => {
                "FAILED: the survivor's disk does not have what was promised."
            }
            (false, 1) => "FAILED: clients noticed.",
            (false, _) => "FAILED: two hosts are live.",
        }
    }
}

fn rate((replies, time): (u64, std::time::Duration)) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        (replies as f64 / time.as_secs_f64()).round()
    }
}

fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

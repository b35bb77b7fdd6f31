//! What the bench says: both sides and their ratios, as a table for people and as one JSON object for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::place::Places;
use super::{Measured, Outcome, round};
use crate::args::BenchArgs;

/// The JSON object. Keys are never renamed. A number that could not be measured is null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    seconds: u64,
    rounds: u16,
    clients: u16,
    pipeline: u16,
    disk: &'static str,
    vcpus: u8,
    /// Which processors of this machine each host has; the clients have the primary's.
    processors: Places,
    unprotected: Numbers,
    protected: Numbers,
    /// Protected over unprotected.
    ratio: Numbers,
    /// Median round trip of the pair's QUIC connection.
    rtt_us: Option<f64>,
    /// Protected p50 minus unprotected p50.
    added_p50_us: Added,
    /// The same in round trips.
    added_p50_in_rtts: Added,
    /// Processor time of one pipelined GET, in us.
    cpu_us_per_get: CpuPerGet,
    log_bytes: u64,
    input_bytes: u64,
    log_bytes_per_input_byte: Option<f64>,
}

/// One side, or the ratio of both.
#[derive(Clone, Copy, Debug, Serialize)]
struct Numbers {
    ping_p50_us: Option<f64>,
    ping_p99_us: Option<f64>,
    get_p50_us: Option<f64>,
    get_p99_us: Option<f64>,
    set_p50_us: Option<f64>,
    set_p99_us: Option<f64>,
    pipelined_get_per_s: Option<f64>,
    pipelined_set_per_s: Option<f64>,
    bulk_in_mib_per_s: Option<f64>,
    bulk_out_mib_per_s: Option<f64>,
}

/// Whose processor time.
#[derive(Clone, Copy, Debug, Serialize)]
struct CpuPerGet {
    processors: usize,
    unprotected: Shares,
    protected: Shares,
}

/// In us for one request.
#[derive(Clone, Copy, Debug, Serialize)]
struct Shares {
    clients: Option<f64>,
    /// The VMM and its device processes.
    primary: Option<f64>,
    backup: Option<f64>,
}

impl Shares {
    fn of(side: &Measured) -> Self {
        let requests = side.pipelined_get.requests();
        let each = |time: std::time::Duration| {
            (requests > 0).then(|| round(time.as_secs_f64() * 1e6 / requests as f64, 1000.0))
        };
        Self {
            clients: each(side.cpu.clients),
            primary: each(side.cpu.primary),
            backup: each(side.cpu.backup),
        }
    }

    fn told(&self) -> String {
        format!(
            "{} clients, {} primary, {} backup",
            text(self.clients),
            text(self.primary),
            text(self.backup)
        )
    }
}

/// For each kind of request.
#[derive(Clone, Copy, Debug, Serialize)]
struct Added {
    ping: Option<f64>,
    get: Option<f64>,
    set: Option<f64>,
}

impl Numbers {
    fn of(side: &Measured) -> Self {
        Self {
            ping_p50_us: side.ping.percentile_us(0.5),
            ping_p99_us: side.ping.percentile_us(0.99),
            get_p50_us: side.get.percentile_us(0.5),
            get_p99_us: side.get.percentile_us(0.99),
            set_p50_us: side.set.percentile_us(0.5),
            set_p99_us: side.set.percentile_us(0.99),
            pipelined_get_per_s: side.pipelined_get.requests_per_s(),
            pipelined_set_per_s: side.pipelined_set.requests_per_s(),
            bulk_in_mib_per_s: side.bulk_in.mib_per_s(),
            bulk_out_mib_per_s: side.bulk_out.mib_per_s(),
        }
    }

    fn ratio(above: &Self, below: &Self) -> Self {
        let ratio = |above: Option<f64>, below: Option<f64>| Some(round(above? / below?, 1000.0));
        Self {
            ping_p50_us: ratio(above.ping_p50_us, below.ping_p50_us),
            ping_p99_us: ratio(above.ping_p99_us, below.ping_p99_us),
            get_p50_us: ratio(above.get_p50_us, below.get_p50_us),
            get_p99_us: ratio(above.get_p99_us, below.get_p99_us),
            set_p50_us: ratio(above.set_p50_us, below.set_p50_us),
            set_p99_us: ratio(above.set_p99_us, below.set_p99_us),
            pipelined_get_per_s: ratio(above.pipelined_get_per_s, below.pipelined_get_per_s),
            pipelined_set_per_s: ratio(above.pipelined_set_per_s, below.pipelined_set_per_s),
            bulk_in_mib_per_s: ratio(above.bulk_in_mib_per_s, below.bulk_in_mib_per_s),
            bulk_out_mib_per_s: ratio(above.bulk_out_mib_per_s, below.bulk_out_mib_per_s),
        }
    }

    fn rounded(self) -> Self {
        let ten = |value: Option<f64>| value.map(|value| round(value, 10.0));
        Self {
            ping_p50_us: ten(self.ping_p50_us),
            ping_p99_us: ten(self.ping_p99_us),
            get_p50_us: ten(self.get_p50_us),
            get_p99_us: ten(self.get_p99_us),
            set_p50_us: ten(self.set_p50_us),
            set_p99_us: ten(self.set_p99_us),
            pipelined_get_per_s: ten(self.pipelined_get_per_s),
            pipelined_set_per_s: ten(self.pipelined_set_per_s),
            bulk_in_mib_per_s: ten(self.bulk_in_mib_per_s),
            bulk_out_mib_per_s: ten(self.bulk_out_mib_per_s),
        }
    }

    fn lines(&self) -> [(&'static str, Option<f64>); 10] {
        [
            ("PING p50, us", self.ping_p50_us),
            ("PING p99, us", self.ping_p99_us),
            ("GET p50, us", self.get_p50_us),
            ("GET p99, us", self.get_p99_us),
            ("SET p50, us", self.set_p50_us),
            ("SET p99, us", self.set_p99_us),
            ("pipelined GET, 1/s", self.pipelined_get_per_s),
            ("pipelined SET, 1/s", self.pipelined_set_per_s),
            ("bulk in, MiB/s", self.bulk_in_mib_per_s),
            ("bulk out, MiB/s", self.bulk_out_mib_per_s),
        ]
    }
}

impl Report {
    pub(crate) fn new(args: &BenchArgs, outcome: &Outcome) -> Self {
        let (alone, protected) = (Numbers::of(&outcome.alone), Numbers::of(&outcome.protected));
        let rtt_us = median(&outcome.protected.rtt_us);
        let added = |above: Option<f64>, below: Option<f64>| Some(round(above? - below?, 10.0));
        let added_p50_us = Added {
            ping: added(protected.ping_p50_us, alone.ping_p50_us),
            get: added(protected.get_p50_us, alone.get_p50_us),
            set: added(protected.set_p50_us, alone.set_p50_us),
        };
        let in_rtts = |added: Option<f64>| Some(round(added? / rtt_us.filter(|rtt| *rtt > 0.0)?, 100.0));
        let (log, input) = (outcome.protected.log_bytes, outcome.protected.input_bytes);
        Self {
            seconds: args.seconds,
            rounds: args.rounds,
            clients: args.clients,
            pipeline: args.pipeline,
            disk: args.disk.word(),
            vcpus: args.vcpus,
            processors: outcome.places.clone(),
            ratio: Numbers::ratio(&protected, &alone),
            unprotected: alone.rounded(),
            protected: protected.rounded(),
            rtt_us,
            added_p50_us,
            added_p50_in_rtts: Added {
                ping: in_rtts(added_p50_us.ping),
                get: in_rtts(added_p50_us.get),
                set: in_rtts(added_p50_us.set),
            },
            cpu_us_per_get: CpuPerGet {
                processors: outcome.places.count(),
                unprotected: Shares::of(&outcome.alone),
                protected: Shares::of(&outcome.protected),
            },
            log_bytes: log,
            input_bytes: input,
            log_bytes_per_input_byte: (input > 0).then(|| round(log as f64 / input as f64, 1000.0)),
        }
    }

    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!("{}", self.table());
        let Added { ping, get, set } = self.added_p50_us;
        println!(
            "Added p50 in us: PING {}, GET {}, SET {}; round trip of the pair's QUIC connection {} us, so that is {}, {} \
             and {} round trips.",
            text(ping),
            text(get),
            text(set),
            text(self.rtt_us),
            text(self.added_p50_in_rtts.ping),
            text(self.added_p50_in_rtts.get),
            text(self.added_p50_in_rtts.set),
        );
        let cpu = &self.cpu_us_per_get;
        println!(
            "Processor time of a pipelined GET in us: alone {}; protected {}. {}",
            cpu.unprotected.told(),
            cpu.protected.told(),
            self.processors.told()
        );
        println!(
            "Log: {} bytes for {} bytes of input, {} for one.",
            self.log_bytes,
            self.input_bytes,
            text(self.log_bytes_per_input_byte)
        );
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_FULL_CONDENSED)
            .set_header(["", "alone", "protected", "ratio"]);
        let sides = self
            .unprotected
            .lines()
            .into_iter()
            .zip(self.protected.lines())
            .zip(self.ratio.lines());
        for (((name, alone), (_, protected)), (_, ratio)) in sides {
            table.add_row([name.to_owned(), text(alone), text(protected), text(ratio)]);
        }
        table
            .column_iter_mut()
            .skip(1)
            .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table
    }
}

fn text(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn median(values: &[u64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map(|value| *value as f64)
}

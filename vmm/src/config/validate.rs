//! From the file as written to checked values; called by `Config::parse` alone. Every refusal names the key, the line
//! and what would do. Nothing here touches the file system: whether a path exists is for `lockstep check` and for
//! whoever opens it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_protocol::limits::{MAX_TIMEOUT, MIN_HEARTBEAT};
use lockstep_protocol::session::{BadTiming, Timing};
use toml::Spanned;

use super::digest::digest;
use super::nodes::nodes;
use super::raw;
use crate::vcpu::VcpuCount;

use super::{Arbiter, Config, ConfigError, ConsoleMode, Disk, DiskMode, Guest, Net, Pair, Vm};

/// Turns the text of a configuration file into checked values.
pub(super) fn validate(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let file: raw::File = toml::from_str(text).map_err(|error| syntax(path, text, &error))?;
    let at = Source {
        path,
        text,
        base: path.parent().unwrap_or(Path::new("")),
    };
    let vm = vm(&at, file.vm)?;
    let pair = pair(&at, &file.pair)?;
    let nodes = nodes(&at, file.node, &vm)?;
    let digest = digest(&vm, &pair, file.arbiter.get_ref(), &nodes);
    let arbiter = arbiter(&at, file.arbiter)?;
    Ok(Config {
        path: path.into(),
        vm,
        pair,
        arbiter,
        nodes,
        digest,
    })
}

/// The text and what is needed to point into it.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    base: &'a Path,
}

impl Source<'_> {
    pub(super) fn refuse(&self, offset: usize, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.into(),
            line: line_of(self.text, offset),
            key: key.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn path_at(&self, key: &str, value: Spanned<String>) -> Result<PathBuf, ConfigError> {
        if value.get_ref().is_empty() {
            return Err(self.refuse(value.span().start, key, "is empty; write a path"));
        }
        Ok(self.base.join(value.into_inner()))
    }

    pub(super) fn optional_path(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
    ) -> Result<Option<PathBuf>, ConfigError> {
        value.map(|value| self.path_at(key, value)).transpose()
    }

    pub(super) fn socket_address(
        &self,
        key: &str,
        value: &Spanned<String>,
    ) -> Result<SocketAddr, ConfigError> {
        value.get_ref().parse().map_err(|_| {
            let problem = format!(
                "\"{}\" is not an address; write IP:PORT, as in \"192.0.2.1:7001\"",
                value.get_ref()
            );
            self.refuse(value.span().start, key, problem)
        })
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    ConfigError::Syntax {
        path: path.into(),
        line,
        problem: error.message().replace('\n', ", "),
    }
}

fn vm(at: &Source<'_>, raw: raw::Vm) -> Result<Vm, ConfigError> {
    if !is_name(raw.name.get_ref()) {
        return Err(at.refuse(raw.name.span().start, "vm.name", NAME_RULE));
    }
    if let Some(cmdline) = &raw.cmdline
        && (cmdline.get_ref().len() > CMDLINE_MAX || cmdline.get_ref().contains('\0'))
    {
        let problem = format!("must be at most {CMDLINE_MAX} bytes without NUL");
        return Err(at.refuse(cmdline.span().start, "vm.cmdline", problem));
    }
    let memory_mib = match raw.memory_mib {
        None => MEMORY_MIB_DEFAULT,
        Some(value) if MEMORY_MIB.contains(value.get_ref()) => value.into_inner(),
        Some(value) => {
            let problem = format!("must be from {} to {}", MEMORY_MIB.start(), MEMORY_MIB.end());
            return Err(at.refuse(value.span().start, "vm.memory_mib", problem));
        }
    };
    let vcpus = match raw.vcpus {
        None => VcpuCount::ONE,
        Some(value) => VcpuCount::new(*value.get_ref()).ok_or_else(|| {
            let problem = format!("must be from 1 to {}", VcpuCount::MAX);
            at.refuse(value.span().start, "vm.vcpus", problem)
        })?,
    };
    let guest = guest(at, raw.guest, raw.kernel, raw.initrd)?;
    if guest == Guest::Micro && raw.net.is_none() {
        let problem = "is missing, but the micro guest does nothing without a network; write [vm.net] with a mac, as in \
                       mac = \"52:54:00:4c:53:01\"";
        return Err(at.refuse(raw.name.span().start, "vm.net", problem));
    }
    Ok(Vm {
        vcpus,
        name: raw.name.into_inner(),
        guest,
        console: match raw.console {
            raw::Console::Log => ConsoleMode::Log,
            raw::Console::Stdio => ConsoleMode::Stdio,
            raw::Console::Socket => ConsoleMode::Socket,
        },
        memory_mib,
        cmdline: raw.cmdline.map(Spanned::into_inner).unwrap_or_default(),
        net: raw.net.map(|net| mac(at, &net.mac)).transpose()?,
        disk: raw.disk.map(|disk| Disk {
            mode: match disk.mode {
                raw::DiskMode::Shared => DiskMode::Shared,
                raw::DiskMode::Mirror => DiskMode::Mirror,
            },
        }),
    })
}

/// A kernel makes the guest Linux; without one it is the micro guest.
fn guest(
    at: &Source<'_>,
    kind: Option<Spanned<raw::Guest>>,
    kernel: Option<Spanned<String>>,
    initrd: Option<Spanned<String>>,
) -> Result<Guest, ConfigError> {
    let start = kind.as_ref().map_or(0, |kind| kind.span().start);
    match (kind.map(Spanned::into_inner), kernel, initrd) {
        (Some(raw::Guest::Micro), Some(stray), _) => {
            let problem = "means nothing to the micro guest; take it out, or write guest = \"linux\"";
            Err(at.refuse(stray.span().start, "vm.kernel", problem))
        }
        (Some(raw::Guest::Linux), None, _) => Err(at.refuse(
            start,
            "vm.kernel",
            "is missing; name a vmlinux or bzImage for the guest to boot",
        )),
        (_, None, Some(stray)) => {
            Err(at.refuse(stray.span().start, "vm.initrd", "needs `vm.kernel` beside it"))
        }
        (_, None, None) => Ok(Guest::Micro),
        (_, Some(kernel), initrd) => Ok(Guest::Linux {
            kernel: at.path_at("vm.kernel", kernel)?,
            initrd: at.optional_path("vm.initrd", initrd)?,
        }),
    }
}

fn mac(at: &Source<'_>, raw: &Spanned<String>) -> Result<Net, ConfigError> {
    let bytes: Option<Vec<u8>> = raw
        .get_ref()
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect();
    let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    match mac {
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Net { mac }),
        _ => {
            let problem =
                "is not a unicast MAC address; write six pairs of hex digits, as in \"52:54:00:4c:53:01\"";
            Err(at.refuse(raw.span().start, "vm.net.mac", problem))
        }
    }
}

fn pair(at: &Source<'_>, raw: &raw::Pair) -> Result<Pair, ConfigError> {
    let value = |key: &str, value: &Option<Spanned<u64>>, default: u64, range: (u64, u64)| match value {
        None => Ok(default),
        Some(value) if (range.0..=range.1).contains(value.get_ref()) => Ok(*value.get_ref()),
        Some(value) => {
            let problem = format!("must be from {} to {}", range.0, range.1);
            Err(at.refuse(value.span().start, key, problem))
        }
    };
    let window = value(
        "pair.log_window_kib",
        &raw.log_window_kib,
        LOG_WINDOW_KIB_DEFAULT,
        LOG_WINDOW_KIB,
    )?;
    let stall = value(
        "pair.stall_limit_ms",
        &raw.stall_limit_ms,
        STALL_LIMIT_MS_DEFAULT,
        STALL_LIMIT_MS,
    )?;
    let Timing {
        heartbeat,
        timeout,
        lease,
    } = timing(at, raw)?;
    Ok(Pair {
        heartbeat,
        timeout,
        lease,
        log_window_bytes: window << 10,
        stall_limit: Duration::from_millis(stall),
    })
}

/// What the hosts would refuse when they meet, or when a VM was copied already, is refused here: exactly that.
fn timing(at: &Source<'_>, raw: &raw::Pair) -> Result<Timing, ConfigError> {
    let (heartbeat_ms, timeout_ms, lease_ms) = (&raw.heartbeat_ms, &raw.timeout_ms, &raw.lease_ms);
    let or = |value: &Option<Spanned<u64>>, default| {
        let millis = value
            .as_ref()
            .map(|value| Duration::from_millis(*value.get_ref()));
        millis.unwrap_or(default)
    };
    let default = Timing::default();
    let timing = Timing {
        heartbeat: or(heartbeat_ms, default.heartbeat),
        timeout: or(timeout_ms, default.timeout),
        lease: or(lease_ms, default.lease),
    };
    let Err(bad) = timing.check() else {
        return Ok(timing);
    };
    let offset = |value: &Option<Spanned<u64>>| value.as_ref().map_or(0, |value| value.span().start);
    let (key, offset, problem) = match bad {
        BadTiming::HeartbeatTooShort(_) => (
            "pair.heartbeat_ms",
            offset(heartbeat_ms),
            format!("must be at least {}", MIN_HEARTBEAT.as_millis()),
        ),
        BadTiming::LeaseTooShort { lease, .. } => (
            "pair.heartbeat_ms",
            offset(heartbeat_ms).max(offset(lease_ms)),
            format!(
                "must be below half of pair.lease_ms, which is {}: one late heartbeat must not stop the outputs",
                lease.as_millis()
            ),
        ),
        BadTiming::LeaseOutlivesTimeout { timeout, .. } => (
            "pair.lease_ms",
            offset(lease_ms).max(offset(timeout_ms)),
            format!(
                "must be below pair.timeout_ms, which is {}: the backup may only go live when the lease is over",
                timeout.as_millis()
            ),
        ),
        BadTiming::TimeoutTooLong(_) => (
            "pair.timeout_ms",
            offset(timeout_ms),
            format!("must be at most {}", MAX_TIMEOUT.as_millis()),
        ),
    };
    Err(at.refuse(offset, key, problem))
}

fn arbiter(at: &Source<'_>, raw: Spanned<raw::Arbiter>) -> Result<Arbiter, ConfigError> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let stray = |key: &str, value: &Option<Spanned<String>>, kind: &str| match value {
        Some(value) => Err(at.refuse(
            value.span().start,
            key,
            format!("means nothing to an arbiter of kind \"{kind}\"; take it out"),
        )),
        None => Ok(()),
    };
    match raw.kind {
        raw::ArbiterKind::File => {
            stray("arbiter.address", &raw.address, "file")?;
            stray("arbiter.certificate", &raw.certificate, "file")?;
            let dir = raw.dir.ok_or_else(|| {
                at.refuse(
                    start,
                    "arbiter.dir",
                    "is missing; name a directory that both hosts share",
                )
            })?;
            Ok(Arbiter::File {
                dir: at.path_at("arbiter.dir", dir)?,
            })
        }
        raw::ArbiterKind::Quic => {
            stray("arbiter.dir", &raw.dir, "quic")?;
            let address = raw.address.ok_or_else(|| {
                at.refuse(
                    start,
                    "arbiter.address",
                    "is missing; write the IP:PORT of lockstep-arbiter",
                )
            })?;
            let certificate = raw.certificate.ok_or_else(|| {
                at.refuse(
                    start,
                    "arbiter.certificate",
                    "is missing; name the certificate of lockstep-arbiter",
                )
            })?;
            Ok(Arbiter::Quic {
                address: at.socket_address("arbiter.address", &address)?,
                certificate: at.path_at("arbiter.certificate", certificate)?,
            })
        }
    }
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

pub(super) const NAME_RULE: &str = "is not a name: 1 to 32 of a-z, 0-9 and '-'";
/// As long as the boot page of the micro guest has room for.
const CMDLINE_MAX: usize = 2048;
const MEMORY_MIB_DEFAULT: u32 = 64;
/// The micro guest needs some; its devices sit just above 3.25 GiB.
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 16..=3072;
const STALL_LIMIT_MS_DEFAULT: u64 = 2;
const STALL_LIMIT_MS: (u64, u64) = (1, 1000);
const LOG_WINDOW_KIB_DEFAULT: u64 = 16 * 1024;
const LOG_WINDOW_KIB: (u64, u64) = (256, 1024 * 1024);

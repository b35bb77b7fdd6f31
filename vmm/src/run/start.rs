//! The steps of a start that both roles share: signals, the arbiter, the first claim, what the link is told.

use super::Host;
use crate::config::{Config, Node};
use crate::ft::port::DevicePort;
use crate::ft::wait::Waker;
use crate::stop::Stop;
use anyhow::{Context, bail};
use lockstep_arbiter::client::ArbiterClient;
use lockstep_protocol::ids::{Holder, LogOffset, Term};
use lockstep_protocol::log::WindowLimit;
use lockstep_protocol::message::{Digest, Hello, Image, Role};
use lockstep_protocol::session::Timing;
use lockstep_protocol::takeover::{Verdict, may_begin};
use lockstep_protocol::time::Instant as Moment;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::link::PairConfig;
use lockstep_quic::state::StateConfig;
use lockstep_staging::gate::boottime;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a host waits for its peer to be started at all.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// What the register said when this process started.
#[derive(Debug)]
pub(super) struct LastTerm {
    /// The last term that was granted; zero if none was.
    pub(super) term: Term,
    /// Who holds it.
    pub(super) holder: Option<Holder>,
}

/// Turns SIGTERM and SIGINT into a request to stop.
pub(super) fn stop_on_signals(waker: &Waker) -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let (flag, waker) = (stop.clone(), waker.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("Cannot watch signals")?;
    let listen = async move {
        let (Ok(mut term), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return tracing::error!("Cannot watch signals; stop this node by its control socket");
        };
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        flag.ask();
        waker.wake();
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(listen))
        .context("Cannot start a thread")?;
    Ok(stop)
}

/// Opens the arbiter that the configuration names.
pub(super) fn open_arbiter(config: &Config, node: &Node) -> anyhow::Result<ArbiterClient> {
    Ok(ArbiterClient::open(&config.arbiter_of(node))?)
}

/// Asks the arbiter for the last term.
pub(super) fn last_term(host: &mut Host) -> anyhow::Result<LastTerm> {
    Ok(match host.seat.arbiter.read(&host.seat.vm)? {
        Some((term, holder)) => LastTerm {
            term,
            holder: Some(holder),
        },
        None => LastTerm {
            term: Term::ZERO,
            holder: None,
        },
    })
}

/// Nobody powers the VM on beside a survivor: the holder of the last term is one of the hosts that start (I18).
pub(super) fn check_nobody_else_lives(host: &Host, last: &LastTerm, with_peer: bool) -> anyhow::Result<()> {
    let starting = [&host.node.name, &host.peer.name];
    let starting = if with_peer { &starting[..] } else { &starting[..1] };
    match &last.holder {
        Some(holder) if !may_begin(Some(holder), starting) => bail!(
            "Node {} holds term {} and may still be running the VM; if it is, start `lockstep standby` here. If it is \
             not, start it there with --alone; if that host is gone for good, give this one the next term first, with \
             `lockstep-arbiter claim`",
            holder.node,
            last.term
        ),
        _ => Ok(()),
    }
}

/// An earlier start of this node may have been a backup that won its term and ended before it lived: then the other
/// host may speak until its lease is over (I7). Nothing was echoed any more since this start began.
pub(super) fn outlast_leases(host: &Host, last: &LastTerm, began: Moment) {
    if last.term == Term::ZERO {
        // Nobody ever had a lease.
        return;
    }
    let over = timing(&host.config).lease_over(began);
    while boottime() < over {
        thread::sleep(over.saturating_since(boottime()));
    }
}

/// Claims the first term of this run.
pub(super) fn claim_first(host: &mut Host, expected: Term) -> anyhow::Result<Term> {
    match host.seat.claim(expected)? {
        Verdict::Granted { term } => Ok(term),
        Verdict::Refused { term, holder } => {
            bail!(
                "Node {} claimed term {term} first; look at it with `lockstep status`",
                holder.node
            )
        }
    }
}

/// Everything the link needs: who we are, whom we accept, where, and what must be equal.
pub(super) fn pair_config(
    host: &Host,
    ports: &[DevicePort],
    role: Role,
    last: &LastTerm,
) -> anyhow::Result<PairConfig> {
    let address = match role {
        Role::Primary => host.peer.address,
        Role::Backup => host.node.listen,
    };
    Ok(PairConfig {
        address,
        identity: Identity::load(&host.node.certificate, &host.node.key)?,
        peer: PinnedPeer::load(&host.peer.certificate)?,
        hello: hello(host, ports, role, last),
        window: WindowLimit {
            bytes: host.config.pair.log_window_bytes,
            ..WindowLimit::default()
        },
        patience: PATIENCE,
    })
}

/// The same for a pair that is made while the VM runs, in the term after `term`. Nobody compares images then: what the
/// disk holds is part of what is copied, or shared.
pub(super) fn next_pair_config(
    host: &Host,
    ports: &[DevicePort],
    role: Role,
    term: Term,
) -> anyhow::Result<PairConfig> {
    let mut config = pair_config(host, ports, role, &LastTerm { term, holder: None })?;
    config.hello.image = None;
    Ok(config)
}

/// What the connection over which the VM is copied needs: the host in `term` listens, a spare dials it.
pub(super) fn state_config(
    host: &Host,
    ports: &[DevicePort],
    role: Role,
    term: Term,
    peers: Vec<PinnedPeer>,
) -> anyhow::Result<StateConfig> {
    let hello = hello(host, ports, role, &LastTerm { term, holder: None });
    Ok(StateConfig {
        address: match role {
            Role::Primary => host.node.listen,
            Role::Backup => host.peer.address,
        },
        identity: Identity::load(&host.node.certificate, &host.node.key)?,
        peers,
        // What the disk holds is part of what is copied, or shared.
        hello: Hello { image: None, ..hello },
    })
}

/// The pair's timing.
pub(super) fn timing(config: &Config) -> Timing {
    let pair = &config.pair;
    Timing {
        heartbeat: pair.heartbeat,
        timeout: pair.timeout,
        lease: pair.lease,
    }
}

fn hello(host: &Host, ports: &[DevicePort], role: Role, last: &LastTerm) -> Hello {
    Hello {
        version: lockstep_protocol::limits::PROTOCOL_VERSION,
        release: env!("CARGO_PKG_VERSION").into(),
        node: host.node.name.clone(),
        role,
        term: last.term.next(),
        start: LogOffset::ZERO,
        config: Digest::new(
            *blake3::hash(&[host.config.digest(), *host.image.as_bytes()].concat()).as_bytes(),
        ),
        template: Digest::new(*blake3::hash(&host.machine.template()).as_bytes()),
        devices: devices_digest(ports),
        image: ports.iter().find_map(DevicePort::image).map(|digest| Image {
            digest: Digest::new(*digest),
            last_holder: last.holder.as_ref().map(|holder| holder.node.clone()),
        }),
        timing: timing(&host.config),
    }
}

fn devices_digest(ports: &[DevicePort]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for port in ports {
        let (config, features) = port.facts();
        hasher.update(&features.to_le_bytes());
        hasher.update(&u64::try_from(config.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(config);
    }
    Digest::new(*hasher.finalize().as_bytes())
}

//! The run loop of a spare: it knocks at the other hosts in turn until one runs the VM unprotected, takes the VM in, and is a
//! backup like any other from then on.

use super::shadow::Shadow;
use super::start::LastTerm;
use super::{Ended, Host, start};
use crate::config::Node;
use crate::ft::pair::BackupSide;
use crate::ft::port::DevicePort;
use crate::ft::replay::Replayer;
use crate::machine::Machine;
use crate::memory;
use crate::status::{Role, What};
use crate::transfer::disk::intake::DiskIntake;
use crate::transfer::intake::{self, IntakeError};
use anyhow::{Context, anyhow, bail};
use lockstep_protocol::ids::Term;
use lockstep_protocol::message::{self, Hello};
use lockstep_quic::identity::PinnedPeer;
use lockstep_quic::link::PairError;
use lockstep_quic::state::StateReceiver;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

/// How long to wait before knocking again.
const KNOCK_AGAIN: Duration = Duration::from_millis(100);
/// How much of its memory a spare touches between two knocks.
const TOUCHED_AT_ONCE: u64 = 64 << 20;
/// How long the primary may take to begin the session; it stands still meanwhile.
const SESSION_WAIT: Duration = Duration::from_secs(5);

/// Waits for a VM and follows it.
pub(super) fn start(host: &mut Host, mut ports: Vec<DevicePort>) -> anyhow::Result<Ended> {
    if ports.iter().any(DevicePort::is_mirrored) && host.node.disk.is_none() {
        bail!(
            "The disk of this VM is mirrored, and the configuration does not say where this host has its image; name it \
             as node.{}.disk",
            host.node.name
        );
    }
    host.monitor.set_role(Role::Standby, Term::ZERO);
    let others: Vec<Node> = host.config.others_of(host.node.name.as_str()).cloned().collect();
    let mut told = String::new();
    let mut touched = GuestAddress(0);
    for other in others.iter().cycle() {
        host.face(other);
        match take_in(host, &mut ports) {
            Ok(pair) => {
                // Up to here a request to stop ends the process at once: a copy that is cut off protects nobody yet.
                host.stop.heed();
                let replayer = Replayer::new(Box::new(pair.source()), ports, host.config.vm.memory_bytes());
                return Shadow { replayer, pair }.run(host);
            }
            Err(error) => {
                settle_for(host, error, &mut told)?;
                touched = memory::touch(host.machine.memory(), touched, TOUCHED_AT_ONCE);
            }
        }
    }
    bail!("The configuration names no other host")
}

/// Nobody who answers is waited for; hosts that differ are for a person to look at; the rest is tried again.
fn settle_for(host: &Host, error: anyhow::Error, told: &mut String) -> anyhow::Result<()> {
    host.monitor.copying().forget();
    match error.downcast_ref::<PairError>() {
        Some(cause) if cause.is_silence() => {}
        Some(PairError::Refused(_) | PairError::RefusedByPeer(_)) => return Err(error),
        // A host that is a backup sends a spare away for as long as it is one: that is said once.
        _ => {
            let error = format!("{error:#}");
            if *told != error {
                tracing::warn!(%error, "The VM did not come whole; knocking again");
            }
            *told = error;
        }
    }
    thread::sleep(KNOCK_AGAIN);
    Ok(())
}

/// Takes a VM in and begins to follow its log.
fn take_in(host: &mut Host, ports: &mut [DevicePort]) -> anyhow::Result<BackupSide> {
    let peers = vec![PinnedPeer::load(&host.peer.certificate)?];
    let config = start::state_config(host, ports, message::Role::Backup, Term::ZERO, peers)?;
    let mut source = StateReceiver::dial(&config)?;
    if own_image(host, ports).is_some() {
        check_holder(host, source.peer())?;
    }
    tracing::info!(from = %source.peer().node, "Taking the VM in");
    host.monitor.note(What::CopyBegan);
    let memory = Arc::clone(host.machine.memory());
    let disk = match own_image(host, ports) {
        Some(path) => Some(DiskIntake::open(path).context("Cannot open the disk image of this host")?),
        None => None,
    };
    let taken = intake::take_in(&mut source, &memory, disk, host.monitor.copying()).map_err(plain)?;
    let stood_still = Instant::now();
    let machine = Machine::restore_in(host.spec(ports), memory, &taken.state)
        .context("The VM that came cannot run here")?;
    let built = std::mem::replace(&mut host.machine, machine);
    // KVM takes its time for the end of a VM, and the primary stands still.
    thread::spawn(move || drop(built));
    tracing::debug!(after = ?stood_still.elapsed(), "The machine is made");
    for port in ports.iter_mut() {
        port.adopt(&host.machine);
    }
    let term = source.peer().term;
    let mut config = start::next_pair_config(host, ports, message::Role::Backup, Term::ZERO)?;
    (config.hello.term, config.hello.start) = (term, taken.start);
    config.patience = SESSION_WAIT;
    let mut context = host.context(ports);
    let (told, listening) = sync_channel(1);
    context.listening = Some(told);
    let position = taken.state.position();
    let pair = thread::scope(|scope| -> anyhow::Result<_> {
        let session = scope.spawn(|| BackupSide::listen(config, context));
        // Who cannot listen says so by its own end.
        if listening.recv().is_ok() {
            source.confirm(term, taken.start, position)?;
        }
        let pair = session.join().ok().context("The thread that listens died")?;
        Ok(pair?)
    })?;
    // Its end may take a while; the log does not wait for it.
    thread::spawn(move || drop(source));
    // The primary may not get its term now, and goes on alone: then there is no backup yet.
    pair.await_log()
        .map_err(|why| anyhow!("The session ended before the log began ({why})"))?;
    if let Some(id) = taken.pairing {
        ports.iter().for_each(|port| port.begin_pairing(id));
    }
    host.monitor.copying().end(stood_still.elapsed());
    host.monitor.note(What::PeerConnected);
    host.monitor.set_pair(Some(pair.probe()));
    host.monitor.set_role(Role::Backup, pair.term());
    Ok(pair)
}

/// Where this host's own image of a mirrored disk lies.
pub(super) fn own_image<'a>(host: &'a Host, ports: &[DevicePort]) -> Option<&'a Path> {
    let is_mirrored = ports.iter().any(DevicePort::is_mirrored);
    host.node.disk.as_deref().filter(|_| is_mirrored)
}

/// An image is given up only for that of the host that holds the last term: no other one is newer.
fn check_holder(host: &mut Host, source: &Hello) -> anyhow::Result<()> {
    let last = start::last_term(host)?;
    if is_of_holder(&last, source) {
        return Ok(());
    }
    let holder = last.holder.as_ref().map(|holder| &holder.node);
    bail!(
        "Node {} offers its disk for term {}, but the arbiter says that term {} is the last one and that {} holds it, so \
         the image of this host stays as it is",
        source.node,
        source.term,
        last.term,
        holder.map_or("nobody", |node| node.as_str())
    )
}

/// A host that never heard what came of its claim for the term that it offers may hold it already: it will claim it again.
fn is_of_holder(last: &LastTerm, source: &Hello) -> bool {
    let holds = last
        .holder
        .as_ref()
        .is_some_and(|holder| holder.node == source.node);
    holds && (last.term.next() == source.term || last.term == source.term)
}

/// What the connection says is looked for by its kind.
fn plain(error: IntakeError) -> anyhow::Error {
    match error {
        IntakeError::Source(error) => error.into(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_protocol::ids::{Holder, Incarnation, NodeName};

    fn last(term: u64, node: &str) -> LastTerm {
        LastTerm {
            term: Term::new(term),
            holder: Some(Holder {
                node: NodeName::new(node).unwrap(),
                incarnation: Incarnation::new(1),
            }),
        }
    }

    fn offer(term: u64, node: &str) -> Hello {
        Hello {
            term: Term::new(term),
            ..Hello::bare(NodeName::new(node).unwrap(), message::Role::Primary)
        }
    }

    #[test]
    fn an_image_is_given_up_for_that_of_the_holder_even_if_it_never_heard_that_its_claim_was_granted() {
        assert!(is_of_holder(&last(4, "a"), &offer(5, "a")));
        assert!(is_of_holder(&last(5, "a"), &offer(5, "a")));
    }

    #[test]
    fn an_image_is_not_given_up_for_that_of_a_host_whose_term_is_over() {
        assert!(!is_of_holder(&last(5, "b"), &offer(5, "a")));
        assert!(!is_of_holder(&last(4, "b"), &offer(5, "a")));
        assert!(!is_of_holder(&last(6, "a"), &offer(5, "a")));
    }
}

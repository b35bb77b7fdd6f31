//! What the modelled hosts say to each other: the log and heartbeats go one way, acks and echoes the other. `step` calls it;
//! it decides nothing that the machines decide.

use super::super::pair::{A, B, Pair, Role};

impl Pair {
    /// What a driver does when it is woken. One that is late is the same as words that are late, so it is never late
    /// but on a host that sleeps.
    pub(super) fn drive(&mut self, host: usize) -> bool {
        match host {
            _ if !self.hosts[host].runs() => false,
            A => self.drive_primary(),
            _ => self.drive_backup(),
        }
    }

    fn drive_primary(&mut self) -> bool {
        let now = self.now;
        let host = &mut self.hosts[A];
        let Role::Primary(primary) = &mut host.role else {
            return false;
        };
        let log = primary.poll_transmit();
        let beat = primary.poll_heartbeat(now);
        let lost = primary.handle_timeout(now).is_some();
        let any = log.is_some() || beat.is_some();
        self.wires.log.extend(log);
        self.wires.beats.extend(beat);
        if lost { self.suspect(A) } else { any }
    }

    fn drive_backup(&mut self) -> bool {
        let now = self.now;
        let host = &mut self.hosts[B];
        let Role::Backup(backup, _) = &mut host.role else {
            return false;
        };
        let ack = backup.poll_ack();
        let echo = backup.poll_heartbeat(now);
        let lost = backup.handle_timeout(now).is_some();
        let any = ack.is_some() || echo.is_some();
        self.wires.acks.extend(ack);
        self.wires.echoes.extend(echo);
        if lost { self.suspect(B) } else { any }
    }

    pub(super) fn hear_log(&mut self) -> bool {
        let Some(bytes) = self.wires.log.pop_front() else {
            return false;
        };
        if let Role::Backup(backup, _) = &mut self.hosts[B].role
            && let Err(fault) = backup.handle_log_bytes(self.now, bytes)
        {
            self.accuse(fault.to_string());
        }
        self.drive(B);
        true
    }

    pub(super) fn hear_beat(&mut self) -> bool {
        let Some(beat) = self.wires.beats.pop_front() else {
            return false;
        };
        if let Role::Backup(backup, _) = &mut self.hosts[B].role
            && let Err(fault) = backup.handle_heartbeat(self.now, &beat)
        {
            self.accuse(fault.to_string());
        }
        self.drive(B);
        true
    }

    pub(super) fn hear_ack(&mut self) -> bool {
        let Some(ack) = self.wires.acks.pop_front() else {
            return false;
        };
        let host = &mut self.hosts[A];
        if let Role::Primary(primary) = &mut host.role {
            match primary.handle_ack(self.now, &ack) {
                Ok(()) => host.gate = primary.gate(),
                Err(fault) => self.accuse(fault.to_string()),
            }
        }
        true
    }

    pub(super) fn hear_echo(&mut self) -> bool {
        let Some(echo) = self.wires.echoes.pop_front() else {
            return false;
        };
        let host = &mut self.hosts[A];
        if let Role::Primary(primary) = &mut host.role {
            match primary.handle_heartbeat(self.now, &echo) {
                Ok(()) => host.gate = primary.gate(),
                Err(fault) => self.accuse(fault.to_string()),
            }
        }
        true
    }
}

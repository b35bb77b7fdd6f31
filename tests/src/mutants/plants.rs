//! The bugs that are planted, in the order in which a packet would meet them. Each is one that somebody might write.

use super::plant::Plant;

const LOG: &str = "transport/protocol/src/log.rs";
const PRIMARY: &str = "transport/protocol/src/primary.rs";
const BACKUP: &str = "transport/protocol/src/backup.rs";
const REPLAY: &str = "transport/protocol/src/replay.rs";
const WINDOW: &str = "transport/protocol/src/window.rs";
const OUTBOX: &str = "transport/protocol/src/outbox.rs";
const SESSION: &str = "transport/protocol/src/session.rs";
const TAKEOVER: &str = "transport/protocol/src/takeover.rs";
const MESSAGE: &str = "transport/protocol/src/message.rs";
const DECODER: &str = "transport/protocol/src/codec/decoder.rs";
const STORE: &str = "arbiter/src/store/file.rs";
const START: &str = "tests/src/sim/process/start.rs";
const REPROTECT: &str = "tests/src/sim/process/reprotect.rs";
const DEVICE: &str = "tests/src/sim/device.rs";
const DRIVER: &str = "tests/src/sim/process/driver.rs";
const SETTLE: &str = "tests/src/sim/process/settle.rs";
const LIVE: &str = "tests/src/sim/process/live.rs";
const DRIVE: &str = "tests/src/sim/device/drive.rs";

/// All of them.
pub const PLANTS: &[Plant] = &[
    Plant {
        name: "release-one-record-early",
        file: OUTBOX,
        from: "needs <= self.acked && now < self.lease_until",
        to: "needs <= self.acked.next() && now < self.lease_until",
    },
    Plant {
        name: "ignore-the-lease",
        file: OUTBOX,
        from: "needs <= self.acked && now < self.lease_until",
        to: "needs <= self.acked && self.lease_until > Instant::ZERO && now >= Instant::ZERO",
    },
    Plant {
        name: "lease-before-the-first-echo",
        file: PRIMARY,
        from: "            lease_until: Instant::ZERO,",
        to: "            lease_until: now + timing.timeout * 4,",
    },
    Plant {
        name: "lease-from-the-echo",
        file: PRIMARY,
        from: "self.lease_until.max(sent_at + self.timing.lease)",
        to: "self.lease_until.max(now + self.timing.lease)",
    },
    Plant {
        name: "lease-without-the-eighth",
        file: SESSION,
        from: "heard + self.lease + self.lease / LEASE_MARGIN_DIVISOR",
        to: "heard + self.lease + Duration::ZERO / LEASE_MARGIN_DIVISOR",
    },
    Plant {
        name: "promote-before-the-lease-is-over",
        file: TAKEOVER,
        from: "self.claim.poll_deed(now, self.lease_over)",
        to: "self.claim.poll_deed(now, Instant::ZERO)",
    },
    Plant {
        name: "echo-what-was-not-heard",
        file: BACKUP,
        from: "        self.hearing.note(now);\n        self.unechoed",
        to: "        self.unechoed",
    },
    Plant {
        name: "suspect-forgets-when-it-heard",
        file: BACKUP,
        from: "pub fn suspect(self, now: Instant) -> Takeover {",
        to: "pub fn suspect(mut self, now: Instant) -> Takeover {\n        self.hearing = Hearing::new(&self.timing, Instant::ZERO);",
    },
    Plant {
        name: "ack-before-storing",
        file: BACKUP,
        from: "        let (upto, executed) = news;",
        to: "        let (upto, executed) = (news.0.next(), news.1);",
    },
    Plant {
        name: "a-takeover-loses-a-record",
        file: BACKUP,
        from: "pub fn suspect(self, now: Instant) -> Takeover {",
        to: "pub fn suspect(mut self, now: Instant) -> Takeover {\n        self.log.records.pop_back();",
    },
    Plant {
        name: "acked-when-sent",
        file: PRIMARY,
        from: "        self.window.mark();\n",
        to: "        self.window.mark();\n        self.window.ack(self.window.end());\n",
    },
    Plant {
        name: "a-window-without-a-limit",
        file: LOG,
        from: "self.end.since(self.acked) < self.limit.records && self.unacked_bytes() < self.limit.bytes",
        to: "true || self.unacked_bytes() < self.limit.bytes",
    },
    Plant {
        name: "a-backlog-without-a-limit",
        file: BACKUP,
        from: "self.records.len() < BACKLOG_RECORDS && self.bytes < BACKLOG_BYTES",
        to: "true",
    },
    Plant {
        name: "a-backlog-that-never-resumes",
        file: BACKUP,
        from: "used(self.records.len(), BACKLOG_RECORDS) && used(self.bytes, BACKLOG_BYTES)",
        to: "used(self.records.len() + BACKLOG_RECORDS, BACKLOG_RECORDS) && used(self.bytes, BACKLOG_BYTES)",
    },
    Plant {
        name: "a-word-of-an-earlier-term-counts",
        file: SESSION,
        from: "std::cmp::Ordering::Less => Ok(Age::Stale)",
        to: "std::cmp::Ordering::Less => Ok(Age::Current)",
    },
    Plant {
        name: "hosts-of-two-terms-meet",
        file: MESSAGE,
        from: "if ours.term != theirs.term {",
        to: "if ours.term > theirs.term.next() {",
    },
    Plant {
        name: "needs-the-inputs-without-the-mark",
        file: WINDOW,
        from: "        start.next()\n",
        to: "        start\n",
    },
    Plant {
        name: "an-output-without-a-digest",
        file: WINDOW,
        from: "    digest\n        .map(|bytes| Input::Digest { bytes })",
        to: "    digest\n        .filter(|_| !mark)\n        .map(|bytes| Input::Digest { bytes })",
    },
    Plant {
        name: "every-record-closes-its-window",
        file: DECODER,
        from: "from.u8()? & CLOSES != 0",
        to: "from.u8()? != 0",
    },
    Plant {
        name: "a-delta-enters-in-pieces",
        file: REPLAY,
        from: "            Input::DeltaPages { bytes } => self.keep(bytes, at),",
        to: "            Input::DeltaPages { bytes } => Ok(Admitted::Delta { pages: Vec::new(), end: bytes, heals: false }),",
    },
    Plant {
        name: "release-on-the-word-of-a-diverged-replica",
        file: BACKUP,
        from: "        if self.diverged.is_some() {\n            return None;\n        }\n        let news",
        to: "        let news",
    },
    Plant {
        name: "a-diverged-backup-claims",
        file: TAKEOVER,
        from: "        if self.diverged {\n            return None;\n        }\n",
        to: "",
    },
    Plant {
        name: "a-diverged-guest-follows-on",
        file: REPLAY,
        from: "        if self.is_astray() {\n            return self.handle_astray",
        to: "        if self.course == Course::Healing || matches!(record.input, Input::Heal) {\n            return self.handle_astray",
    },
    Plant {
        name: "an-old-delta-heals",
        file: REPLAY,
        from: "            (Course::Healing, Input::DeltaPages { bytes }) => self.keep(bytes, at),\n            (Course::Healing, Input::DeltaEnd { bytes }) => {",
        to: "            (_, Input::DeltaPages { bytes }) => self.keep(bytes, at),\n            (_, Input::DeltaEnd { bytes }) => {",
    },
    Plant {
        name: "a-record-for-later-is-forgotten",
        file: REPLAY,
        from: "            self.ahead = Some(record);\n",
        to: "",
    },
    Plant {
        name: "claim-before-the-replay",
        file: TAKEOVER,
        from: "        if !self.replayed {\n            return None;\n        }\n",
        to: "",
    },
    Plant {
        name: "alone-before-the-verdict",
        file: TAKEOVER,
        from: "            ClaimState::Due(at) if now >= *at => (\n                Deed::Claim {\n                    expected: self.expected,\n                },\n                ClaimState::Asked,\n            ),",
        to: "            ClaimState::Due(at) if now >= *at => (Deed::Promote { term: self.expected.next() }, ClaimState::Done),",
    },
    Plant {
        name: "silence-of-the-arbiter-is-a-yes",
        file: TAKEOVER,
        from: "            self.state = ClaimState::Due(now + CLAIM_RETRY);",
        to: "            let _ = now + CLAIM_RETRY;\n            self.state = ClaimState::Won(self.expected.next());",
    },
    Plant {
        name: "a-loser-lives",
        file: TAKEOVER,
        from: "Verdict::Refused { term, holder } => ClaimState::Lost { by: holder, term },",
        to: "Verdict::Refused { .. } => ClaimState::Won(self.expected.next()),",
    },
    Plant {
        name: "a-term-is-used-twice",
        file: TAKEOVER,
        from: "Verdict::Granted { term } => ClaimState::Won(term),",
        to: "Verdict::Granted { .. } => ClaimState::Won(self.expected),",
    },
    Plant {
        name: "a-claim-is-asked-once",
        file: TAKEOVER,
        from: "            self.state = ClaimState::Due(now + CLAIM_RETRY);",
        to: "            let _ = now + CLAIM_RETRY;",
    },
    Plant {
        name: "a-term-file-says-yes-to-everybody",
        file: STORE,
        from: "(Some(found), _) if found.holder == mine.holder => self.confirm(vm, mine),",
        to: "(Some(_), _) => Ok(Verdict::Granted { term: mine.term }),\n            #[allow(unreachable_patterns)]",
    },
    Plant {
        name: "a-term-is-granted-before-it-is-synced",
        file: STORE,
        from: "        self.disk\n            .sync_dir(&place)\n            .map_err(|source| told(source, SYNC_DIR, &place, &self.dir))?;\n        let Tenure { term, holder }",
        to: "        let Tenure { term, holder }",
    },
    Plant {
        name: "a-term-file-is-not-synced",
        file: STORE,
        from: "        self.disk.sync(&draft).map_err(fail(\"sync\"))",
        to: "        let _ = fail(\"sync\");\n        Ok(())",
    },
    Plant {
        name: "start-alone-within-a-lease",
        file: START,
        from: "Some(Verdict::Granted { term }) if alone && expected > Term::ZERO => {",
        to: "Some(Verdict::Granted { term }) if alone && expected == Term::MAX => {",
    },
    Plant {
        name: "nothing-is-issued-again",
        file: SETTLE,
        from: "        self.reissue();\n",
        to: "",
    },
    Plant {
        name: "a-spare-without-a-record-claims",
        file: SETTLE,
        from: "        if !has_log || self.guest.position() == Position::ZERO {",
        to: "        if !has_log && self.guest.position() == Position::ZERO {",
    },
    Plant {
        name: "a-term-with-a-spare-that-nobody-granted",
        file: REPROTECT,
        from: "        self.ask(env, Question::Claim(self.desk.term));",
        to: "        let _ = Question::Claim(self.desk.term);\n        let term = self.desk.term.next();\n        \
             self.begin_with_spare(env, Answer::Verdict(Verdict::Granted { term }));",
    },
    Plant {
        name: "outputs-that-do-not-wait-for-the-spare",
        file: DEVICE,
        from: "        self.facts = Gate {\n            acked,\n            lease_until: Instant::ZERO,\n        };",
        to: "        let _ = acked;",
    },
    Plant {
        name: "a-spare-gets-an-endless-lease",
        file: DEVICE,
        from: "            acked,\n            lease_until: Instant::ZERO,",
        to: "            acked,\n            lease_until: self.facts.lease_until,",
    },
    Plant {
        name: "outputs-before-the-spare-has-a-record",
        file: DRIVER,
        from: "            if acked > end.start {",
        to: "            if acked >= end.start {",
    },
    Plant {
        name: "time-enters-unlogged",
        file: LIVE,
        from: "        for input in inputs {\n            if let Err(misfit) = self.guest.enter(input) {",
        to: "        let more = Input::Tick { time: self.guest_now(env) };\n        for input in inputs.iter().chain([&more]) {\n            if let Err(misfit) = self.guest.enter(input) {",
    },
    Plant {
        name: "a-disk-that-looks-at-no-gate",
        file: DRIVE,
        from: "        if !gate.lets(made.needs, desk.now(env)) {\n            return;\n        }\n",
        to: "",
    },
    Plant {
        name: "start-beside-a-spare-that-lives",
        file: TAKEOVER,
        from: "last.is_none_or(|holder| hosts.contains(&&holder.node))",
        to: "last.is_none_or(|holder| hosts.contains(&&holder.node) || hosts.len() > 1)",
    },
];

#[cfg(test)]
mod tests {
    use super::PLANTS;
    use std::path::Path;

    #[test]
    fn every_bug_has_its_place_in_the_source_as_it_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("tests/ lies in the workspace");
        for plant in PLANTS {
            plant.text(root).expect("a bug that has no place is planted anew");
        }
    }
}

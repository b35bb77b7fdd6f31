//! What is no pair does not become one: wrong certificates, versions, configurations, machines. Every story starts real
//! `lockstep run` processes and reads the sentence with which they end. Each end is an exit code other than 0.
//!
//! Most of a hello cannot be wrong between two processes of one build on one machine. Those stories speak for the
//! primary themselves, over the real link, to a real backup.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use lockstep_protocol::ids::{LogOffset, NodeName};
use lockstep_protocol::log::WindowLimit;
use lockstep_protocol::message::{Digest, Hello, Refusal, Role};
use lockstep_protocol::session::PeerLost;
use lockstep_protocol::time::Instant;
use lockstep_quic::dates::Validity;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::link::{
    BackupEvents, PairConfig, PairError, PrimaryEvents, connect_primary, listen_backup,
};
use lockstep_tests::network;
use lockstep_tests::pair::{BACKUP_ADDRESS, Node, Pair};

#[test]
fn a_primary_refuses_a_backup_with_a_strangers_certificate() {
    network::alone("a_primary_refuses_a_backup_with_a_strangers_certificate", || {
        let pair = Pair::new().unwrap();
        pair.make_keys("other", &["b"]).unwrap();
        let config = pair.changed_config("keys/b.crt", "other/b.crt").unwrap();
        let mut b = pair.start("b", "backup").unwrap();

        let mut a = pair.start_with(&config, "a", "primary").unwrap();

        assert_ends(
            &mut a,
            "Refused the peer at 127.0.0.3:7001: Its certificate sha256:",
        );
        assert!(a.log().contains("is none of the pinned ones"), "{}", a.log());
        // A stranger at the door is no reason for the backup to leave.
        b.wait_until_logged("Somebody knocked and was sent away").unwrap();
        assert!(b.is_running());
    });
}

#[test]
fn a_backup_refuses_a_primary_with_a_strangers_certificate() {
    network::alone("a_backup_refuses_a_primary_with_a_strangers_certificate", || {
        let pair = Pair::new().unwrap();
        pair.make_keys("other", &["a"]).unwrap();
        let config = pair.changed_config("keys/a.crt", "other/a.crt").unwrap();
        let mut b = pair.start_with(&config, "b", "backup").unwrap();

        let mut a = pair.start("a", "primary").unwrap();

        assert_ends(
            &mut a,
            "The peer at 127.0.0.3:7001 refuses our certificate: it is not pinned there",
        );
        b.wait_until_logged("is none of the pinned ones").unwrap();
        assert!(b.is_running());
    });
}

#[test]
fn a_host_does_not_start_with_its_own_certificate_expired() {
    network::alone("a_host_does_not_start_with_its_own_certificate_expired", || {
        let pair = Pair::new().unwrap();
        expire(&pair, "b");

        let mut b = pair.start("b", "backup").unwrap();

        assert_ends(&mut b, "expired");
        assert!(b.log().contains("keys/b.crt"), "{}", b.log());
    });
}

#[test]
fn a_primary_does_not_start_with_its_backups_certificate_expired() {
    network::alone(
        "a_primary_does_not_start_with_its_backups_certificate_expired",
        || {
            let pair = Pair::new().unwrap();
            expire(&pair, "b");

            let mut a = pair.start("a", "primary").unwrap();

            assert_ends(&mut a, "expired");
            assert!(a.log().contains("keys/b.crt"), "{}", a.log());
        },
    );
}

#[test]
fn a_key_that_others_may_read_is_not_used() {
    network::alone("a_key_that_others_may_read_is_not_used", || {
        let pair = Pair::new().unwrap();
        let key = pair.path("keys/b.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();

        let mut b = pair.start("b", "backup").unwrap();

        let remedy = format!(
            "can be read by others (mode 0644); run `chmod 600 {}`",
            key.display()
        );
        assert_ends(&mut b, &remedy);
    });
}

#[test]
fn hosts_with_different_configurations_refuse_each_other() {
    network::alone("hosts_with_different_configurations_refuse_each_other", || {
        let pair = Pair::new().unwrap();
        let config = pair
            .changed_config("memory_mib = 64", "memory_mib = 128")
            .unwrap();
        let mut b = pair.start_with(&config, "b", "backup").unwrap();

        let mut a = pair.start("a", "primary").unwrap();

        assert_ends(&mut a, "Host b and host a have different configurations (");
        assert_ends(&mut b, "use the same file on both");
    });
}

#[test]
fn hosts_with_different_disks_refuse_each_other() {
    network::alone("hosts_with_different_disks_refuse_each_other", || {
        let pair = Pair::new().unwrap();
        fs::File::create_new(pair.path("other.raw"))
            .unwrap()
            .set_len(32 << 20)
            .unwrap();
        let config = pair
            .changed_config(
                "disk = \"disk.raw\"\nrun_dir = \"b\"",
                "disk = \"other.raw\"\nrun_dir = \"b\"",
            )
            .unwrap();
        let mut b = pair.start_with(&config, "b", "backup").unwrap();

        let mut a = pair.start("a", "primary").unwrap();

        assert_ends(
            &mut a,
            "Host b and host a have different devices or device features (",
        );
        assert_ends(
            &mut b,
            "Host b and host a have different devices or device features (",
        );
    });
}

#[test]
fn a_host_of_another_protocol_version_is_refused() {
    network::alone("a_host_of_another_protocol_version_is_refused", || {
        let refused = refused_hello(|hello| hello.version += 1);

        refused
            .assert_both_say("Host b runs release 0.1.0 (protocol version 1) and host a runs release 0.1.0");
        refused.assert_both_say("(protocol version 2): install the same version on both");
    });
}

#[test]
fn a_host_of_another_release_is_refused() {
    network::alone("a_host_of_another_release_is_refused", || {
        let refused = refused_hello(|hello| hello.release = "0.0.9".into());

        refused.assert_both_say("Host b runs release 0.1.0 and host a runs release 0.0.9");
    });
}

#[test]
fn a_host_with_another_cpu_template_is_refused() {
    network::alone("a_host_with_another_cpu_template_is_refused", || {
        let refused = refused_hello(|hello| hello.template = Digest::new([7; 32]));

        refused.assert_both_say("Host b and host a offer different CPU templates (");
        refused.assert_both_say("a guest would not run the same on both");
    });
}

#[test]
fn a_host_of_the_same_name_is_refused() {
    network::alone("a_host_of_the_same_name_is_refused", || {
        let refused = refused_hello(|hello| hello.node = NodeName::new("b").unwrap());

        refused.assert_both_say("Both hosts call themselves b: start each with its own --node");
    });
}

#[test]
fn a_second_backup_is_refused() {
    network::alone("a_second_backup_is_refused", || {
        let refused = refused_hello(|hello| hello.role = Role::Backup);

        refused.assert_both_say(
            "Host b and host a both want to be the backup: start one as primary and one as backup",
        );
    });
}

#[test]
fn a_second_node_in_the_same_run_directory_leaves_the_first_alone() {
    network::alone(
        "a_second_node_in_the_same_run_directory_leaves_the_first_alone",
        || {
            let pair = Pair::new().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();

            let mut again = pair.start("b", "primary").unwrap();

            assert_ends(&mut again, "Another node runs in ");
            assert_ends(&mut again, "stop it, or give this one a run_dir of its own");
            assert!(a.is_running() && b.is_running());
            assert_eq!(b.status().unwrap()["role"], "backup");
            assert_eq!(b.status().unwrap()["peer"]["connected"], true);
        },
    );
}

#[test]
fn a_backup_whose_port_is_taken_says_so() {
    network::alone("a_backup_whose_port_is_taken_says_so", || {
        let pair = Pair::new().unwrap();
        let _taken = UdpSocket::bind(BACKUP_ADDRESS).unwrap();

        let mut b = pair.start("b", "backup").unwrap();

        assert_ends(
            &mut b,
            "Another process already uses UDP address 127.0.0.3:7001; stop it or choose another port",
        );
    });
}

#[test]
fn a_host_without_its_disk_says_so() {
    network::alone("a_host_without_its_disk_says_so", || {
        let pair = Pair::new().unwrap();
        fs::remove_file(pair.path("disk.raw")).unwrap();

        let mut b = pair.start("b", "backup").unwrap();

        assert_ends(&mut b, "");
        let sentence = format!(
            "There is no disk at {}: make one with",
            pair.path("disk.raw").display()
        );
        assert!(b.log().contains(&sentence), "{}", b.log());
    });
}

#[test]
fn a_host_without_the_arbiters_directory_says_so() {
    network::alone("a_host_without_the_arbiters_directory_says_so", || {
        let pair = Pair::new().unwrap();
        fs::remove_dir(pair.path("arbiter")).unwrap();

        let mut b = pair.start("b", "backup").unwrap();

        let sentence = format!(
            "There is no directory {}; is the shared disk mounted?",
            pair.path("arbiter").display()
        );
        assert_ends(&mut b, &sentence);
    });
}

/// The node ends with an exit code other than 0, and this is among its last words.
fn assert_ends(node: &mut Node, sentence: &str) {
    let (code, words) = node.wait_for_end().unwrap();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(sentence), "it said: {words}");
}

/// Replaces the keys of a node by expired ones.
fn expire(pair: &Pair, node: &str) {
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    let validity = Validity {
        from: now - 2 * day,
        until: now - day,
    };
    let pems = Identity::generate(node, validity).unwrap();
    // Written into the old files, so the key stays its owner's alone.
    fs::write(pair.path(&format!("keys/{node}.crt")), pems.certificate).unwrap();
    fs::write(pair.path(&format!("keys/{node}.key")), pems.key).unwrap();
}

/// What both sides said to a hello.
struct Refused {
    primary: String,
    backup: String,
}

impl Refused {
    fn assert_both_say(&self, sentence: &str) {
        assert!(
            self.primary.contains(sentence),
            "the primary heard: {}",
            self.primary
        );
        assert!(self.backup.contains(sentence), "the backup said: {}", self.backup);
    }
}

/// Says a hello to a real backup that is right but for one thing.
fn refused_hello(spoil: impl FnOnce(&mut Hello)) -> Refused {
    let pair = Pair::new().unwrap();
    let mut hello = hello("a", Role::Primary);
    hello.config = config_digest(&pair);
    spoil(&mut hello);
    let mut b = pair.start("b", "backup").unwrap();

    let ours = connect_primary(speak(&pair, "a", "b", hello), Box::new(Deaf));

    let primary = ours.expect_err("the backup refuses").to_string();
    let (code, backup) = b.wait_for_end().unwrap();
    assert_eq!(code, Some(1), "{backup}");
    Refused { primary, backup }
}

/// What a real host a says of its configuration, heard by a host b that refuses it.
fn config_digest(pair: &Pair) -> Digest {
    let _a = pair.start("a", "primary").unwrap();
    let ours = listen_backup(speak(pair, "b", "a", hello("b", Role::Backup)), Box::new(Deaf));
    match ours {
        Err(PairError::Refused(Refusal::Config(_, _, _, theirs))) => theirs,
        other => panic!("a configuration was to be refused: {other:?}"),
    }
}

fn speak(pair: &Pair, we: &str, they: &str, hello: Hello) -> PairConfig {
    let key = |name: &str| pair.path(&format!("keys/{name}"));
    let (certificate, key_file) = (key(&format!("{we}.crt")), key(&format!("{we}.key")));
    PairConfig {
        address: BACKUP_ADDRESS.parse().unwrap(),
        identity: Identity::load(&certificate, &key_file).unwrap(),
        peer: PinnedPeer::load(&key(&format!("{they}.crt"))).unwrap(),
        hello,
        window: WindowLimit::default(),
        patience: Duration::from_secs(20),
    }
}

fn hello(node: &str, role: Role) -> Hello {
    Hello::bare(NodeName::new(node).unwrap(), role)
}

/// Nobody has to be told anything: there is no session.
struct Deaf;

impl PrimaryEvents for Deaf {
    fn acked(&mut self, _: LogOffset) {}
    fn lease(&mut self, _: Instant) {}
    fn peer_lost(&mut self, _: PeerLost) {}
}

impl BackupEvents for Deaf {
    fn peer_lost(&mut self, _: PeerLost) {}
}

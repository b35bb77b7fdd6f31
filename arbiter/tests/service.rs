//! The service as a process, and clients that race, retry, are strangers, or lose it.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use common::{Site, granted, holder, vm};
use lockstep_arbiter::client::{ArbiterClient, Cause, ClaimError};
use lockstep_arbiter::register::VmName;
use lockstep_arbiter::server::FAREWELL;
use lockstep_protocol::ids::Term;
use lockstep_protocol::takeover::Verdict;
use lockstep_quic::config::LinkConfig;
use lockstep_quic::endpoint::PinnedEndpoint;
use lockstep_quic::failure::LinkError;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::pinning::Pins;
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[test]
fn two_hosts_that_claim_at_once_get_one_winner_who_is_known_to_both() {
    let site = Site::new();
    let service = site.serve(0);
    let (a, b) = (site.client("a", &service), site.client("b", &service));

    let (of_a, of_b) = thread::scope(|scope| {
        let of_a = scope.spawn(|| a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap());
        let of_b = scope.spawn(|| b.claim(&vm(), Term::ZERO, &holder("b", 2)).unwrap());
        (of_a.join().unwrap(), of_b.join().unwrap())
    });

    let (term, winner) = a.read(&vm()).unwrap().unwrap();
    let lost = Verdict::Refused {
        term,
        holder: winner.clone(),
    };
    let expected = if winner.node.as_str() == "a" {
        (granted(1), lost)
    } else {
        (lost, granted(1))
    };
    assert_eq!((of_a, of_b), expected);
    assert_eq!(b.read(&vm()).unwrap(), Some((term, winner)));
}

#[test]
fn a_claim_that_was_won_is_granted_again_and_another_start_of_the_host_is_refused() {
    let site = Site::new();
    let service = site.serve(0);
    let a = site.client("a", &service);

    assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(), granted(1));
    assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(), granted(1));
    let refused = Verdict::Refused {
        term: Term::new(1),
        holder: holder("a", 1),
    };
    assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 2)).unwrap(), refused);
}

#[test]
fn a_vm_without_a_term_has_no_holder() {
    let site = Site::new();
    let service = site.serve(0);

    assert_eq!(site.client("a", &service).read(&vm()).unwrap(), None);
}

#[test]
fn a_certificate_that_the_arbiter_does_not_know_is_refused_for_good() {
    let site = Site::new();
    let service = site.serve(0);
    let stranger = site.client("stranger", &service);

    let refused = stranger.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap_err();

    let by_certificate = ClaimError::is_fatal(&refused)
        && matches!(
            &refused,
            ClaimError::Fatal(Cause::Link(LinkError::RefusedByPeer { .. }))
        );
    assert!(by_certificate, "{refused:?}");
    assert_eq!(site.client("a", &service).read(&vm()).unwrap(), None);
}

#[test]
fn an_arbiter_with_another_certificate_is_refused_for_good() {
    let site = Site::new();
    let elsewhere = Site::new();
    let service = elsewhere.serve(0);
    let a = site.client("a", &service);

    let refused = a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap_err();

    let by_certificate = matches!(
        &refused,
        ClaimError::Fatal(Cause::Link(LinkError::PeerRefused { .. }))
    );
    assert!(by_certificate, "{refused:?}");
}

#[test]
fn a_host_cannot_claim_in_the_name_of_the_other_one() {
    let site = Site::new();
    let service = site.serve(0);

    let refused = site
        .client("a", &service)
        .claim(&vm(), Term::ZERO, &holder("b", 1))
        .unwrap_err();

    assert!(refused.is_fatal(), "{refused:?}");
    assert_eq!(site.client("b", &service).read(&vm()).unwrap(), None);
}

#[test]
fn a_host_cannot_claim_a_vm_that_it_has_no_part_in() {
    let site = Site::new();
    let service = site.serve(0);
    let bank = VmName::new("bank").unwrap();

    let refused = site
        .client("b", &service)
        .claim(&bank, Term::ZERO, &holder("b", 1))
        .unwrap_err();

    assert!(refused.is_fatal(), "{refused:?}");
    assert_eq!(site.client("a", &service).read(&bank).unwrap(), None);
}

#[test]
fn an_arbiter_killed_right_after_its_reply_still_knows_what_it_said() {
    let site = Site::new();
    let service = site.serve(0);
    let port = service.address.port();
    let (a, b) = (site.client("a", &service), site.client("b", &service));
    assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(), granted(1));
    service.kill();

    let _again = site.serve(port);

    let refused = Verdict::Refused {
        term: Term::new(1),
        holder: holder("a", 1),
    };
    assert_eq!(b.claim(&vm(), Term::ZERO, &holder("b", 2)).unwrap(), refused);
    // This client's warm connection went to the process that is gone.
    assert_eq!(a.claim(&vm(), Term::new(1), &holder("a", 1)).unwrap(), granted(2));
}

#[test]
fn an_arbiter_that_is_away_is_unreachable_within_the_limit() {
    let site = Site::new();
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = site.config("a", nobody.local_addr().unwrap());
    let limit = Duration::from_millis(150);
    let a = ArbiterClient::open(&config).unwrap().with_attempt(limit);

    let begun = Instant::now();
    let refused = a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap_err();

    assert!(matches!(refused, ClaimError::Unreachable(_)), "{refused:?}");
    assert!(begun.elapsed() < 4 * limit, "{:?}", begun.elapsed());
}

#[test]
fn an_arbiter_that_hangs_is_unreachable_within_the_limit_and_fine_when_it_goes_on() {
    let site = Site::new();
    let service = site.serve(0);
    let limit = Duration::from_millis(150);
    let a = site.client("a", &service).with_attempt(limit);
    assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(), granted(1));
    service.stop();

    let begun = Instant::now();
    let refused = a.claim(&vm(), Term::new(1), &holder("a", 1)).unwrap_err();

    assert!(matches!(refused, ClaimError::Unreachable(_)), "{refused:?}");
    assert!(begun.elapsed() < 4 * limit, "{:?}", begun.elapsed());
    service.go_on();
    let a = a.with_attempt(Duration::from_secs(5));
    assert_eq!(a.claim(&vm(), Term::new(1), &holder("a", 1)).unwrap(), granted(2));
}

#[test]
fn sigterm_ends_the_service_cleanly() {
    let site = Site::new();
    let service = site.serve(0);
    site.client("a", &service)
        .claim(&vm(), Term::ZERO, &holder("a", 1))
        .unwrap();

    assert!(service.terminate().success());
}

#[test]
fn sigterm_ends_the_service_although_its_disk_hangs() {
    let site = Site::new();
    let service = site.serve(0);
    fs::create_dir(site.path("terms/shop")).unwrap();
    // Opening a pipe that nobody writes to blocks, as a file on a server that is away does.
    let hanging = site.path("terms/shop/term-00000000000000000001");
    mknodat(CWD, &hanging, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let a = site.client("a", &service);
    // Over a warm connection the claim is at the store long before it is given up.
    assert_eq!(a.read(&VmName::new("bank").unwrap()).unwrap(), None);
    let refused = a.claim(&vm(), Term::ZERO, &holder("a", 1));
    assert!(matches!(refused, Err(ClaimError::Unreachable(_))), "{refused:?}");

    let ended = service.terminate_within(3 * FAREWELL);

    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn questions_that_are_too_long_or_no_questions_harm_nobody() {
    let site = Site::new();
    let service = site.serve(0);
    let identity = Identity::load(&site.path("a.crt"), &site.path("a.key")).unwrap();
    let pins = Pins::one(PinnedPeer::load(&site.path("arbiter.crt")).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();

    let answers = runtime.block_on(async {
        let endpoint =
            PinnedEndpoint::dial_only(service.address, identity, pins, LinkConfig::arbiter()).unwrap();
        let connection = endpoint
            .connect(service.address, Duration::from_secs(5))
            .await
            .unwrap();
        let mut answers = Vec::new();
        for bytes in [
            vec![b'{'; 10_000],
            b"{}".to_vec(),
            br#"{"ask":"read","vm":"../x"}"#.to_vec(),
            vec![],
        ] {
            let (mut asking, mut listening) = connection.open_bi().await.unwrap();
            // The service may have stopped listening in the middle.
            let _ = asking.write_all(&bytes).await;
            let _ = asking.finish();
            let answer = listening.read_to_end(10_000).await.unwrap_or_default();
            answers.push(String::from_utf8(answer).unwrap());
        }
        answers
    });

    assert_eq!(answers[0], "");
    assert!(
        answers[1..].iter().all(|answer| answer.contains("\"failed\"")),
        "{answers:?}"
    );
    assert_eq!(site.client("b", &service).read(&vm()).unwrap(), None);
}

#[test]
fn a_full_house_sends_the_next_connection_away_and_serves_those_inside() {
    let site = Site::new();
    let service = site.serve(0);
    let a = site.client("a", &service);
    assert_eq!(a.read(&vm()).unwrap(), None);
    let identity = Identity::load(&site.path("b.crt"), &site.path("b.key")).unwrap();
    let pins = Pins::one(PinnedPeer::load(&site.path("arbiter.crt")).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();

    runtime.block_on(async {
        let endpoint =
            PinnedEndpoint::dial_only(service.address, identity, pins, LinkConfig::arbiter()).unwrap();
        let mut inside = Vec::new();
        let refused = loop {
            match endpoint.connect(service.address, Duration::from_secs(5)).await {
                Ok(connection) => inside.push(connection),
                Err(refused) => break refused,
            }
        };
        assert!(inside.len() < lockstep_arbiter::server::MAX_CONNECTIONS);
        assert!(refused.may_pass(), "{refused:?}");
        assert_eq!(a.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(), granted(1));
    });
}

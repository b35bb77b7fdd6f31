//! The service in this process, over stores that hang or fail, and clients that leave, give up or do not read.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Condvar, Mutex};

use lockstep_protocol::ids::{Holder, Incarnation, Term};
use lockstep_protocol::takeover::Verdict;
use lockstep_quic::dates::Validity;
use tokio::time::sleep;

use super::*;
use crate::register::Tenure;
use crate::store::StoreError;

/// Longer than anything takes here; who waits so long has found a bug.
const LONG: Duration = Duration::from_secs(20);

/// A disk that lets nobody go before it is told to, and remembers the claims.
#[derive(Clone, Default)]
struct Hanging(Arc<Hung>);

#[derive(Default)]
struct Hung {
    counts: Mutex<Counts>,
    goes_on: Condvar,
}

#[derive(Default)]
struct Counts {
    is_going: bool,
    arrived: usize,
    finished: usize,
    claims: usize,
}

impl Hanging {
    fn hang(&self, claims: usize) {
        let mut counts = self.0.counts.lock().unwrap();
        counts.arrived += 1;
        counts.claims += claims;
        let mut counts = self
            .0
            .goes_on
            .wait_while(counts, |counts| !counts.is_going)
            .unwrap();
        counts.finished += 1;
    }

    fn go_on(&self) {
        self.0.counts.lock().unwrap().is_going = true;
        self.0.goes_on.notify_all();
    }

    fn claims(&self) -> usize {
        self.0.counts.lock().unwrap().claims
    }

    async fn is(&self, wished: impl Fn(&Counts) -> bool) {
        eventually(|| wished(&self.0.counts.lock().unwrap())).await;
    }
}

impl Store for Hanging {
    fn read(&self, _vm: &VmName) -> Result<Option<Tenure>, StoreError> {
        self.hang(0);
        Ok(None)
    }

    fn claim(&self, _vm: &VmName, expected: Term, _me: &Holder) -> Result<Verdict, StoreError> {
        self.hang(1);
        Ok(Verdict::Granted {
            term: expected.next(),
        })
    }
}

/// A runtime waits for what hangs in it: a test that fails must end as well.
struct LetGoAtTheEnd(Hanging);

impl Drop for LetGoAtTheEnd {
    fn drop(&mut self) {
        self.0.go_on();
    }
}

/// A disk that is full.
struct Full;

impl Store for Full {
    fn read(&self, _vm: &VmName) -> Result<Option<Tenure>, StoreError> {
        Err(StoreError::Full {
            dir: "/terms".into(),
            source: std::io::Error::from_raw_os_error(28),
        })
    }

    fn claim(&self, vm: &VmName, _expected: Term, _me: &Holder) -> Result<Verdict, StoreError> {
        self.read(vm).map(|_| unreachable!("it is full"))
    }
}

/// The service, and the one node that it knows.
struct Arbiter<S> {
    address: SocketAddr,
    pin: PinnedPeer,
    node: Identity,
    desk: Arc<Desk<S>>,
}

impl<S: Store + 'static> Arbiter<S> {
    fn over(store: S) -> Self {
        let [arbiter, node] = ["arbiter", "a"].map(identity);
        let pin = arbiter.as_peer();
        let client = Client {
            peer: node.as_peer(),
            node: NodeName::new("a").unwrap(),
            vms: None,
        };
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(any_port, arbiter, vec![client], store).unwrap();
        let (address, desk) = (server.local_address().unwrap(), server.desk.clone());
        tokio::spawn(async move { server.run(pending()).await });
        Self {
            address,
            pin,
            node,
            desk,
        }
    }

    async fn caller(&self, limits: LinkConfig) -> Caller {
        let identity = self.node.clone();
        let pins = Pins::one(self.pin.clone());
        let endpoint = PinnedEndpoint::dial_only(self.address, identity, pins, limits).unwrap();
        let connection = endpoint.connect(self.address, LONG).await.unwrap();
        Caller { endpoint, connection }
    }

    /// Clients that ask as much as their streams allow, which is as much as has a place at the store.
    async fn fill(&self, limits: &LinkConfig) -> Vec<(Caller, Vec<RecvStream>)> {
        let mut inside = Vec::new();
        let streams = limits.streams as usize;
        for _ in 0..MAX_AT_STORE / streams {
            let caller = self.caller(limits.clone()).await;
            let mut answers = Vec::new();
            for _ in 0..streams {
                answers.push(caller.ask(&read()).await);
            }
            inside.push((caller, answers));
        }
        inside
    }
}

impl Arbiter<Hanging> {
    /// One whose store hangs with all places taken.
    async fn stuck() -> (Self, Hanging, LetGoAtTheEnd, Vec<(Caller, Vec<RecvStream>)>) {
        let store = Hanging::default();
        let end = LetGoAtTheEnd(store.clone());
        let arbiter = Self::over(store.clone());
        let inside = arbiter.fill(&LinkConfig::arbiter()).await;
        store.is(|counts| counts.arrived == MAX_AT_STORE).await;
        (arbiter, store, end, inside)
    }
}

/// A connection of the node.
struct Caller {
    endpoint: PinnedEndpoint,
    connection: Connection,
}

impl Caller {
    /// Asks; the answer will come by the stream.
    async fn ask(&self, question: &Question) -> RecvStream {
        let (mut asking, listening) = self.connection.open_bi().await.unwrap();
        asking.write_all(&encode(question)).await.unwrap();
        asking.finish().unwrap();
        listening
    }

    async fn exchange(&self, question: &Question) -> Answer {
        let mut listening = self.ask(question).await;
        let bytes = timeout(LONG, listening.read_to_end(MAX_MESSAGE)).await;
        decode(&bytes.unwrap().unwrap()).unwrap()
    }

    /// Has an answer that needs no store: the service has read all that was sent before.
    async fn is_heard(&self) {
        let answer = self.exchange(&claim_of("b")).await;
        assert!(
            matches!(answer, Answer::Failed { may_pass: false, .. }),
            "{answer:?}"
        );
    }

    async fn leave(self) {
        timeout(LONG, self.endpoint.close(0, "Enough")).await.unwrap();
    }
}

fn identity(name: &str) -> Identity {
    let pems = Identity::generate(name, Validity::years(1)).unwrap();
    Identity::from_pems(name, &pems).unwrap()
}

fn read() -> Question {
    let vm = VmName::new("shop").unwrap();
    Question::Read { vm }
}

fn claim_of(node: &str) -> Question {
    Question::Claim {
        vm: VmName::new("shop").unwrap(),
        expected: Term::ZERO,
        me: Holder {
            node: NodeName::new(node).unwrap(),
            incarnation: Incarnation::new(1),
        },
    }
}

async fn eventually(wished: impl Fn() -> bool) {
    let waiting = async {
        while !wished() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, waiting)
        .await
        .expect("what is waited for comes long before");
}

#[tokio::test]
async fn a_question_that_finds_no_place_at_a_store_that_hangs_is_told_so_in_time() {
    let (arbiter, _store, _end, _inside) = Arbiter::stuck().await;
    let late = arbiter.caller(LinkConfig::arbiter()).await;

    let answer = late.exchange(&claim_of("a")).await;

    assert_eq!(answer, Answer::failed(true, STORE_HANGS));
}

#[tokio::test]
async fn a_claim_whose_client_leaves_before_its_turn_is_never_put_to_the_store() {
    let (arbiter, store, _end, inside) = Arbiter::stuck().await;
    let (late, other) = (
        arbiter.caller(LinkConfig::arbiter()).await,
        arbiter.caller(LinkConfig::arbiter()).await,
    );
    let _answer = late.ask(&claim_of("a")).await;
    late.is_heard().await;

    late.leave().await;
    other.is_heard().await;
    store.go_on();

    // It was asked after the claim, so that would have had its turn before.
    assert_eq!(other.exchange(&read()).await, Answer::Nobody {});
    store.is(|counts| counts.finished == MAX_AT_STORE + 1).await;
    assert_eq!(store.claims(), 0);
    drop(inside);
}

#[tokio::test]
async fn a_claim_that_was_given_up_before_its_turn_is_never_put_to_the_store() {
    let (arbiter, store, _end, inside) = Arbiter::stuck().await;
    let late = arbiter.caller(LinkConfig::arbiter()).await;
    let answer = late.ask(&claim_of("a")).await;
    late.is_heard().await;

    drop(answer);
    late.is_heard().await;
    store.go_on();

    assert_eq!(late.exchange(&read()).await, Answer::Nobody {});
    store.is(|counts| counts.finished == MAX_AT_STORE + 1).await;
    assert_eq!(store.claims(), 0);
    drop(inside);
}

#[tokio::test]
async fn a_claim_that_is_at_the_store_is_not_taken_back_when_its_client_leaves() {
    let store = Hanging::default();
    let _end = LetGoAtTheEnd(store.clone());
    let arbiter = Arbiter::over(store.clone());
    let caller = arbiter.caller(LinkConfig::arbiter()).await;
    let _answer = caller.ask(&claim_of("a")).await;
    store.is(|counts| counts.claims == 1).await;

    caller.leave().await;
    store.go_on();

    store.is(|counts| counts.finished == 1).await;
}

#[tokio::test]
async fn clients_that_come_and_go_leave_nothing_behind_while_the_store_hangs() {
    let (arbiter, _store, _end, inside) = Arbiter::stuck().await;
    let before = Arc::strong_count(&arbiter.desk);
    let late = arbiter.caller(LinkConfig::arbiter()).await;
    let _answers = [late.ask(&claim_of("a")).await, late.ask(&read()).await];
    late.is_heard().await;

    late.leave().await;

    eventually(|| Arc::strong_count(&arbiter.desk) == before).await;
    drop(inside);
}

#[tokio::test]
async fn clients_that_do_not_read_their_answers_keep_no_place_at_the_store() {
    let store = Hanging::default();
    store.go_on();
    let arbiter = Arbiter::over(store.clone());
    let hardly_any = LinkConfig {
        stream_window: 1,
        ..LinkConfig::arbiter()
    };

    let _inside = arbiter.fill(&hardly_any).await;

    store.is(|counts| counts.finished == MAX_AT_STORE).await;
    eventually(|| arbiter.desk.at_store.available_permits() == MAX_AT_STORE).await;
}

#[tokio::test]
async fn a_store_that_fails_is_told_to_the_client_with_the_systems_reason() {
    let arbiter = Arbiter::over(Full);
    let caller = arbiter.caller(LinkConfig::arbiter()).await;

    let answer = caller.exchange(&read()).await;

    let sentence = "The disk of /terms is full; nothing was changed: No space left on device (os error 28)";
    assert_eq!(answer, Answer::failed(true, sentence));
}

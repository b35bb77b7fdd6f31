//! What the VMM asks when it needs a term; the one maker of a grant.
//!
//! Each call is one attempt, bounded in time and safe to repeat with the same arguments. The work is done by one
//! thread of the client's own, so that a shared disk that hangs cannot hang the caller, and so that the
//! connection to the service stays warm between calls: at a takeover nobody waits for a handshake.
//! It never retries by itself and never turns doubt into a grant.

mod service;

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_protocol::ids::{Holder, Term};
use lockstep_protocol::takeover::Verdict;
use lockstep_quic::endpoint::EndpointError;
use lockstep_quic::failure::LinkError;
use lockstep_quic::identity::IdentityError;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::config::ArbiterConfig;
use crate::message::{Answer, Question};
use crate::register::{Tenure, VmName};
use crate::store::file::FileStore;
use crate::store::{Store, StoreError};
use service::Service;

/// How long one attempt may take unless the caller says otherwise.
pub const DEFAULT_ATTEMPT: Duration = Duration::from_secs(1);

/// Asks one arbiter, about any VM.
#[derive(Debug)]
pub struct ArbiterClient {
    jobs: mpsc::Sender<Job>,
    /// One question at a time: a second caller waits for its turn.
    turn: Mutex<()>,
    attempt: Duration,
}

impl ArbiterClient {
    /// Checks what can be checked without the arbiter: files, keys, the directory. The service need not run yet.
    pub fn open(config: &ArbiterConfig) -> Result<Self, OpenError> {
        let (jobs, queue) = mpsc::channel(1);
        let attempt = DEFAULT_ATTEMPT;
        match config {
            ArbiterConfig::File { dir } => {
                let store = FileStore::open(dir)?;
                spawn(move || serve_from_store(&store, queue))?;
            }
            ArbiterConfig::Quic {
                address,
                certificate,
                own_certificate,
                own_key,
            } => {
                let service = Service::open(*address, certificate, own_certificate, own_key)?;
                spawn(move || service.run(queue))?;
            }
        }
        Ok(Self {
            jobs,
            turn: Mutex::new(()),
            attempt,
        })
    }

    /// The same with another limit for each attempt.
    #[must_use]
    pub fn with_attempt(self, attempt: Duration) -> Self {
        Self { attempt, ..self }
    }

    /// The newest term of `vm` and whose it is, or none before its first power-on.
    pub fn read(&self, vm: &VmName) -> Result<Option<(Term, Holder)>, ClaimError> {
        match self.ask(Question::Read { vm: vm.clone() })? {
            Answer::Nobody {} => Ok(None),
            Answer::Holds { term, holder } => Ok(Some((term, holder))),
            other => Err(impossible(&other)),
        }
    }

    /// Claims the term after `expected` for `me`. A verdict is final; after an error nothing is known, and the
    /// same claim may be made again.
    pub fn claim(&self, vm: &VmName, expected: Term, me: &Holder) -> Result<Verdict, ClaimError> {
        match self.ask(Question::Claim {
            vm: vm.clone(),
            expected,
            me: me.clone(),
        })? {
            Answer::Granted { term } if term == expected.next() => Ok(Verdict::Granted { term }),
            Answer::Refused { term, holder } if term > expected => Ok(Verdict::Refused { term, holder }),
            other => Err(impossible(&other)),
        }
    }

    fn ask(&self, question: Question) -> Result<Answer, ClaimError> {
        let deadline = Instant::now() + self.attempt;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, answer) = sync_channel(1);
        self.jobs
            .try_send(Job {
                question,
                deadline,
                reply,
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => ClaimError::Unreachable(Cause::Busy),
                TrySendError::Closed(_) => ClaimError::Fatal(Cause::Gone),
            })?;
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(Answer::Failed { may_pass, sentence })) => {
                Err(ClaimError::of(may_pass, Cause::Said { sentence }))
            }
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                Err(ClaimError::Unreachable(Cause::TimedOut { limit: self.attempt }))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ClaimError::Unreachable(Cause::Busy)),
        }
    }
}

/// One question on its way to the client's thread.
struct Job {
    question: Question,
    /// After this nobody waits for the answer.
    deadline: Instant,
    reply: SyncSender<Result<Answer, ClaimError>>,
}

impl Job {
    fn answer(self, answer: Result<Answer, ClaimError>) {
        // Whoever asked may have given up; the answer is then found again by the next attempt.
        let _ = self.reply.send(answer);
    }
}

/// There is no client.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The system refuses a thread or an event loop.
    #[error("Cannot start the arbiter client's thread")]
    Thread(#[from] std::io::Error),
}

/// There is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Asking again can help. Until there is a verdict, nothing may be released.
    #[error("The arbiter cannot be asked now")]
    Unreachable(#[source] Cause),
    /// Asking again will not help before a person has changed something.
    #[error("The arbiter cannot be asked")]
    Fatal(#[source] Cause),
}

impl ClaimError {
    fn of(may_pass: bool, cause: Cause) -> Self {
        if may_pass {
            Self::Unreachable(cause)
        } else {
            Self::Fatal(cause)
        }
    }

    /// Whether asking again will not help before a person has changed something.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal(_))
    }
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> Self {
        Self::of(error.may_pass(), Cause::Store(error))
    }
}

impl From<LinkError> for ClaimError {
    fn from(error: LinkError) -> Self {
        Self::of(error.may_pass(), Cause::Link(error))
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The shared disk has no answer.
    #[error(transparent)]
    Store(StoreError),
    /// The service cannot be reached.
    #[error(transparent)]
    Link(LinkError),
    /// Nothing came in time.
    #[error("No answer within {} ms", limit.as_millis())]
    TimedOut {
        /// The limit of the attempt.
        limit: Duration,
    },
    /// An earlier attempt hangs in the kernel, as on a shared disk whose server is away.
    #[error("An earlier attempt still hangs")]
    Busy,
    /// The client's thread is no more.
    #[error("The arbiter client has ended")]
    Gone,
    /// The service says why not.
    #[error("{sentence}")]
    Said {
        /// In its words.
        sentence: String,
    },
    /// No honest arbiter says this.
    #[error("The arbiter gave an answer that does not fit the question: {answer}")]
    Impossible {
        /// What it said.
        answer: String,
    },
}

fn impossible(answer: &Answer) -> ClaimError {
    ClaimError::Fatal(Cause::Impossible {
        answer: format!("{answer:?}"),
    })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
    // Not joined: a thread that hangs on a shared disk would hang the VMM's end as well.
    thread::Builder::new()
        .name("arbiter-client".to_owned())
        .spawn(work)?;
    Ok(())
}

fn serve_from_store(store: &impl Store, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        // Nobody waits for it any more.
        if Instant::now() >= job.deadline {
            continue;
        }
        let answer = answer_from(store, &job.question);
        job.answer(answer.map_err(ClaimError::from));
    }
}

/// Puts a question to a store; the client's thread and the service do the same with it.
pub(crate) fn answer_from(store: &impl Store, question: &Question) -> Result<Answer, StoreError> {
    match question {
        Question::Read { vm } => Ok(match store.read(vm)? {
            None => Answer::Nobody {},
            Some(Tenure { term, holder }) => Answer::Holds { term, holder },
        }),
        Question::Claim { vm, expected, me } => Ok(match store.claim(vm, *expected, me)? {
            Verdict::Granted { term } => Answer::Granted { term },
            Verdict::Refused { term, holder } => Answer::Refused { term, holder },
        }),
    }
}

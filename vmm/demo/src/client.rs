//! The demo's own client: many TCP connections that ask, check every reply, and know afterwards what must be there.
//!
//! Read in this order: `command` (what is asked), `resp` (how it is said), `model` (what must come back), `shared`
//! (the counters that all connections touch), `load` (one connection and many), `check` (the last look at everything).

pub(crate) mod check;
pub(crate) mod command;
pub(crate) mod load;
pub(crate) mod model;
pub(crate) mod resp;
pub(crate) mod shared;

use std::net::SocketAddr;
use std::time::Duration;

use self::command::Command;
use self::resp::{Connection, Reply};

/// Whether the server at `address` answers a PING now, within so long.
pub(crate) async fn answers(address: SocketAddr, patience: Duration) -> bool {
    let asked = tokio::time::timeout(patience, async {
        let mut connection = Connection::open(address).await?;
        connection.ask(&[Command::Ping.words()]).await?;
        connection.reply().await
    });
    matches!(asked.await, Ok(Ok(Reply::Simple(word))) if word == b"PONG")
}

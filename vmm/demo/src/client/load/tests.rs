//! The whole client against a small server that is honest, or forgetful, or dies.

use std::collections::HashMap;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;

type Store = Rc<RefCell<HashMap<Vec<u8>, Vec<u8>>>>;

/// Executes one command and writes its reply.
fn execute(store: &Store, words: &[Vec<u8>], out: &mut Vec<u8>) {
    let mut store = store.borrow_mut();
    let bulk = |value: Option<&Vec<u8>>, out: &mut Vec<u8>| match value {
        Some(value) => {
            out.extend(format!("${}\r\n", value.len()).into_bytes());
            out.extend(value.iter().chain(b"\r\n"));
        }
        None => out.extend(b"$-1\r\n"),
    };
    match words[0].as_slice() {
        b"PING" => out.extend(b"+PONG\r\n"),
        b"GET" => bulk(store.get(&words[1]), out),
        b"SET" | b"MSET" => {
            for pair in words[1..].chunks(2) {
                store.insert(pair[0].clone(), pair[1].clone());
            }
            out.extend(b"+OK\r\n");
        }
        b"MGET" => {
            out.extend(format!("*{}\r\n", words.len() - 1).into_bytes());
            words[1..].iter().for_each(|key| bulk(store.get(key), out));
        }
        b"APPEND" => {
            let value = store.entry(words[1].clone()).or_default();
            value.extend(&words[2]);
            out.extend(format!(":{}\r\n", value.len()).into_bytes());
        }
        b"DEL" => out.extend(format!(":{}\r\n", u8::from(store.remove(&words[1]).is_some())).into_bytes()),
        b"INCR" => {
            let value = store.entry(words[1].clone()).or_insert_with(|| b"0".to_vec());
            let next = String::from_utf8_lossy(value).parse::<u64>().unwrap() + 1;
            *value = next.to_string().into_bytes();
            out.extend(format!(":{next}\r\n").into_bytes());
        }
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

async fn read_words(stream: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|size| *size > 0)?;
    let mut words = Vec::new();
    for _ in 0..line.trim()[1..].parse::<usize>().unwrap() {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let mut word = vec![0; line.trim()[1..].parse::<usize>().unwrap() + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}

async fn serve(listener: TcpListener, store: Store, dies_after: usize) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let store = Rc::clone(&store);
        spawn_local(async move {
            let mut stream = BufReader::new(stream);
            for _ in 0..dies_after {
                let Some(words) = read_words(&mut stream).await else {
                    return;
                };
                let mut out = Vec::new();
                execute(&store, &words, &mut out);
                let _ = stream.write_all(&out).await;
            }
        });
    }
}

/// Runs a load for a moment against a server, with `meddle` half-way.
fn outcome(dies_after: usize, meddle: impl FnOnce(&Store)) -> (Tally, Losses) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Store::default();
        spawn_local(serve(listener, Rc::clone(&store), dies_after));
        let load = Load::start(address, 4, 1).await.unwrap();
        while load.tally().acked + load.tally().broken < ENOUGH / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        meddle(&store);
        while load.tally().acked + load.tally().broken < ENOUGH && load.tally().broken < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (judge, losses) = load.finish().await.unwrap();
        (judge.tally, losses)
    })
}

const ENOUGH: u64 = 2000;

#[test]
fn an_honest_server_loses_nothing() {
    let (tally, losses) = outcome(usize::MAX, |_| ());
    assert_eq!((tally.wrong, tally.broken, losses), (0, 0, Losses::default()));
    assert!(tally.acked >= ENOUGH);
    assert!(tally.longest_gap > Duration::ZERO);
}

#[test]
fn a_server_that_forgets_everything_is_found_out() {
    let (tally, _) = outcome(usize::MAX, |store| store.borrow_mut().clear());
    assert!(tally.wrong > 0);
    assert!(!tally.stories.is_empty());
}

#[test]
fn a_server_that_goes_back_to_an_earlier_state_is_found_out() {
    let (tally, losses) = outcome(usize::MAX, |store| {
        store.borrow_mut().insert(b"c0:k1".to_vec(), b"0.1:old".to_vec());
        store.borrow_mut().insert(b"shared:0".to_vec(), b"1".to_vec());
    });
    assert!(tally.wrong + losses.wrong + losses.lost > 0);
}

#[test]
fn connections_that_end_are_counted_and_what_was_in_flight_is_not_lost() {
    let (tally, losses) = outcome(300, |_| ());
    assert_eq!(tally.broken, 4);
    assert_eq!((tally.wrong, losses), (0, Losses::default()));
}

//! `lab readme`: README's "Protect a Debian VM on two hosts", typed as it stands there, on two emulated hosts. A new user
//! has real hosts, so three things differ, and only those: the disk that both reach is a device of the emulated storage,
//! behind the name that README has for it; the arbiter is the service, for which README's own lines are taken out of their
//! comment; and the timing is the lab's, the patience of the guest's init too, since everything in an emulated host takes
//! many times as long.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lockstep_demo::outside::{self, Outside};

use super::{Order, until_acked};
use crate::lab::agent;
use crate::lab::config::TIMING;
use crate::lab::packages::tool;
use crate::lab::readme::Readme;
use crate::lab::report::{Report, ms};
use crate::lab::wires::{self, GUEST, NODES, Node, Wire};
use crate::lab::world::World;
use crate::qemu::processes::{Process, eventually};

/// Follows README once.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    let readme = Readme::read()?;
    let mut world = World::build(&order.setting, "readme")?;
    world.dismiss_arbiter();
    let begin = std::time::Instant::now();
    let checks = install(&world, &readme)?;
    make_keys(&world, &readme)?;
    for node in NODES {
        bash(&world, node, &readme.block("3. ", "sh", "tuntap")?)?;
    }
    let mut arbiter = start_arbiter(order, &world, &readme)?;
    let configured = configure(&world, &readme);
    arbiter.check()?;
    configured?;
    start(&mut world, &readme).with_context(|| world.last_words())?;
    let up = begin.elapsed();
    let status = last_line(&readme.block("8. ", "sh", "status")?).replace("--node a", "--node b");
    let protected = bash(&world, Node::B, &status)?;

    let clients = Outside::start(GUEST, order.clients, order.seed)?;
    let talked = until_acked(&clients, REPLIES);
    let killed = talked.and_then(|()| bash(&world, Node::A, &readme.block("9. ", "sh", "kill -9")?));
    let goes_on = killed.and_then(|_| until_acked(&clients, clients.seen().acked + REPLIES));
    let memory = clients.stop()?;
    goes_on.with_context(|| world.last_words())?;
    let (seen, losses) = (memory.seen(), memory.read_back(GUEST)?);
    let survivor = bash(&world, Node::B, &status)?;

    let mut report = order.report("readme");
    report.figure("checks_ok", "Hosts that `lockstep check` approves", checks);
    report.figure(
        "up_s",
        "From the keys to the guest's first answer, s",
        up.as_secs(),
    );
    report.figure("acked_ops", "Replies", seen.acked);
    report.figure("lost_ops", "Acknowledged writes lost", losses.lost);
    report.figure("wrong_replies", "Wrong replies", seen.wrong + losses.wrong);
    report.figure("broken_connections", "Broken connections", seen.broken);
    report.figure("outage_ms", "Outage, ms", ms(seen.longest_gap));
    report.must(
        says(&protected, "role", "backup"),
        format!("The guest is not protected: {protected}"),
    );
    report.must(
        says(&survivor, "role", "alone"),
        format!("Host b does not live alone: {survivor}"),
    );
    report.must(
        losses.lost + losses.wrong + seen.wrong == 0,
        "Something is lost or wrong",
    );
    report.must(seen.broken == 0, format!("{} connections broke", seen.broken));
    Ok(report)
}

/// Whether a status that is made for people has this word in the line of this name.
fn says(status: &str, name: &str, word: &str) -> bool {
    let mut lines = status.lines().map(str::split_whitespace);
    lines.any(|mut words| words.next() == Some(name) && words.any(|found| found == word))
}

/// Step 1, as far as it is typed on a host: the programs lie there already.
fn install(world: &World, readme: &Readme) -> anyhow::Result<u64> {
    let check = last_line(&readme.block("1. ", "sh", "cargo build")?).to_owned();
    for node in NODES {
        let said = bash(world, node, &check)?;
        if said.contains("cannot run stock kernels") {
            bail!("Host {} cannot run Debian: {said}", node.name());
        }
    }
    Ok(NODES.len() as u64)
}

/// Step 2, on one host; then the files go where README sends them.
fn make_keys(world: &World, readme: &Readme) -> anyhow::Result<()> {
    bash(world, Node::A, &readme.block("2. ", "sh", "keys")?)?;
    for name in ["a.crt", "b.crt", "arbiter.crt", "b.key"] {
        let path = format!("{KEYS}/{name}");
        let text = world.host(Node::A).run(&format!("cat {path}"))?;
        world.host(Node::B).run(&agent::put(&path, text.as_bytes()))?;
    }
    world.host(Node::B).run(&format!("chmod 600 {KEYS}/b.key"))?;
    world.host(Node::A).run(&format!("rm {KEYS}/b.key")).map(drop)
}

/// Step 5's service, on the test machine.
fn start_arbiter(order: &Order, world: &World, readme: &Readme) -> anyhow::Result<Process> {
    wires::call_outside(THIRD, Wire::Pair)?;
    let folder = world.folder().join("third");
    fs::create_dir_all(folder.join("keys"))?;
    fs::create_dir_all(folder.join("terms"))?;
    for name in ["a.crt", "b.crt", "arbiter.crt", "arbiter.key"] {
        let text = world.host(Node::A).run(&format!("cat {KEYS}/{name}"))?;
        fs::write(folder.join("keys").join(name), text)?;
    }
    fs::set_permissions(folder.join("keys/arbiter.key"), Permissions::from_mode(0o600))?;
    let text = readme.block("5. ", "toml", "listen")?;
    let terms = folder.join("terms").display().to_string();
    fs::write(
        folder.join("arbiter.toml"),
        text.replace("/var/lib/lockstep-arbiter", &terms),
    )?;
    let typed = readme.block("5. ", "sh", "serve")?;
    let mut words = typed.split_whitespace();
    let program = words.next().context("README starts the arbiter with nothing")?;
    let mut command = Command::new(order.setting.programs.join(program));
    let file = folder.join("arbiter.toml").display().to_string();
    command.args(words.map(|word| word.replace("/etc/lockstep/arbiter.toml", &file)));
    let log = File::create(folder.join("arbiter.log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process::start(&mut command)
}

/// Step 6, on both hosts, and the check behind it.
fn configure(world: &World, readme: &Readme) -> anyhow::Result<()> {
    let text = edited(&readme.block("6. ", "toml", "[pair]")?)?;
    let check = readme.block("6. ", "sh", "check")?;
    for node in NODES {
        let host = world.host(node);
        host.run(&agent::put("/etc/lockstep/shop.toml", text.as_bytes()))?;
        host.run("mkdir -p /shared; ln -s /dev/vda /shared/shop.raw")?;
        bash(
            world,
            node,
            &check.replace("--node a", &format!("--node {}", node.name())),
        )?;
    }
    Ok(())
}

/// The configuration with the arbiter's other lines and the lab's timing.
fn edited(text: &str) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    let mut in_arbiter = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_arbiter = line.starts_with("[arbiter]");
        }
        let key = line.split('=').next().unwrap_or_default().trim();
        lines.push(match (in_arbiter, key) {
            (true, "kind" | "dir") => continue,
            (true, _) if line.starts_with("# ") => line.trim_start_matches("# ").to_owned(),
            (_, "heartbeat_ms") => format!("{key} = {}", TIMING.heartbeat_ms),
            (_, "timeout_ms") => format!("{key} = {}", TIMING.timeout_ms),
            (_, "lease_ms") => format!("{key} = {}", TIMING.lease_ms),
            (_, "stall_limit_ms") => format!("{key} = {}", TIMING.stall_limit_ms),
            // The guest's own init gives up on a service after 90 s, too soon where all is emulated.
            (_, "cmdline") => line.replacen(
                "cmdline = \"",
                "cmdline = \"systemd.default_timeout_start_sec=900 ",
                1,
            ),
            _ => line.to_owned(),
        });
    }
    let text = lines.join("\n") + "\n";
    match text.contains("kind = \"quic\"") {
        true => Ok(text),
        false => bail!("README's configuration has no arbiter service in its comments"),
    }
}

/// Step 7: each line where its comment says, the last one until it answers.
fn start(world: &mut World, readme: &Readme) -> anyhow::Result<()> {
    let block = readme.block("7. ", "sh", "lockstep run")?;
    let on = |place: &str| {
        let line = block.lines().find(|line| line.trim_end().ends_with(place));
        let line = line.with_context(|| format!("Step 7 of README has no line for {place:?}"))?;
        anyhow::Ok(line.split('#').next().unwrap_or_default().trim().to_owned())
    };
    for (node, place) in [(Node::B, "# on b"), (Node::A, "# on a")] {
        let console = format!("/run/lockstep/shop-{}/console.sock", node.name());
        world.start_by_hand(node, &on(place)?, &console)?;
    }
    let client = on("# on a client")?;
    eventually("the guest to answer", BOOT_TIME, || {
        for node in NODES {
            world.host_mut(node).check()?;
            if world.host(node).run("pidof lockstep").is_err() {
                bail!("Node {} ended", node.name());
            }
        }
        let mut words = client.split_whitespace();
        let program = tool(words.next().unwrap_or_default())?;
        let asked = Command::new("timeout")
            .arg("5")
            .arg(program)
            .args(words)
            .output()?;
        Ok(String::from_utf8_lossy(&asked.stdout)
            .contains("PONG")
            .then_some(()))
    })?;
    // Its boot goes on behind redis; the clients come when it keeps nobody waiting.
    eventually("the guest to answer at once", BOOT_TIME, || {
        Ok(outside::answers(GUEST)?.then_some(()))
    })
}

/// Types something at a host's prompt.
fn bash(world: &World, node: Node, typed: &str) -> anyhow::Result<String> {
    let script = format!("bash -e <<'TYPED'\n{typed}\nTYPED");
    world
        .host(node)
        .run(&script)
        .with_context(|| format!("Typed as in README: {typed}"))
}

/// A block's last line, without the comment behind it.
fn last_line(block: &str) -> &str {
    let last = block.lines().last().unwrap_or_default();
    last.split(" #").next().unwrap_or_default().trim()
}

const KEYS: &str = "/etc/lockstep/keys";
/// The third machine in README's example.
const THIRD: &str = "192.0.2.3/24";
const REPLIES: u64 = 200;
/// A whole Debian, whose every instruction is emulated twice.
const BOOT_TIME: Duration = Duration::from_secs(1200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_found_in_a_status_as_people_read_it() {
        let status = " vm          shop   \n role        backup \n term        1      \n";
        assert!(says(status, "role", "backup"));
        assert!(!says(status, "role", "alone"));
        assert!(!says(status, "backup", "role"));
    }

    #[test]
    fn the_configuration_in_readme_can_be_given_its_other_arbiter() {
        let text = Readme::read().unwrap().block("6. ", "toml", "[pair]").unwrap();
        let edited = edited(&text).unwrap();
        assert!(edited.contains("\nkind = \"quic\""));
        assert!(edited.contains("\naddress = \"192.0.2.3:7443\"\ncertificate"));
        assert!(!edited.contains("kind = \"file\""));
        assert!(edited.contains("\nlease_ms = 800\n"));
        assert!(edited.contains("\ncmdline = \"systemd.default_timeout_start_sec=900 root=/dev/vda "));
    }
}

//! What a configuration file may say, and what is answered when it may not.

use super::*;

const GOOD: &str = r#"
[vm]
name = "shop"
guest = "micro"
memory_mib = 64
cmdline = "ip=10.77.0.2/24"
[vm.net]
mac = "52:54:00:4c:53:01"
[vm.disk]
mode = "shared"
[arbiter]
kind = "file"
dir = "arbiter"
[node.a]
address = "127.0.0.2:7001"
certificate = "keys/a.crt"
key = "keys/a.key"
tap = "lsa"
disk = "disk.raw"
run_dir = "run/a"
[node.b]
address = "127.0.0.3:7001"
listen = "127.0.0.9:7001"
certificate = "keys/b.crt"
key = "/etc/keys/b.key"
tap = "lsb"
disk = "disk.raw"
run_dir = "run/b"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/lockstep/vm.toml"), text)
}

fn refusal(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from} is not in the good file");
    parse(&GOOD.replacen(from, to, 1))
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let config = parse(GOOD).unwrap();
    let a = config.node("a").unwrap();
    assert_eq!(a.certificate, Path::new("/etc/lockstep/keys/a.crt"));
    assert_eq!(a.control_socket(), Path::new("/etc/lockstep/run/a/control.sock"));
    assert_eq!(config.node("b").unwrap().key, Path::new("/etc/keys/b.key"));
}

#[test]
fn a_node_listens_where_it_is_found_unless_told_otherwise() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node("a").unwrap().listen.to_string(), "127.0.0.2:7001");
    assert_eq!(config.node("b").unwrap().listen.to_string(), "127.0.0.9:7001");
}

#[test]
fn the_peer_of_one_node_is_the_other() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.peer_of("a").unwrap().name.as_str(), "b");
    assert_eq!(config.peer_of("b").unwrap().name.as_str(), "a");
    assert!(
        config
            .peer_of("c")
            .unwrap_err()
            .to_string()
            .contains("it has \"a\" and \"b\"")
    );
}

#[test]
fn timing_left_out_means_the_documented_defaults() {
    let pair = parse(GOOD).unwrap().pair;
    assert_eq!(pair.heartbeat, Duration::from_millis(20));
    assert_eq!(pair.timeout, Duration::from_millis(120));
    assert_eq!(pair.lease, Duration::from_millis(100));
}

#[test]
fn a_misspelt_key_is_refused_with_its_line() {
    let error = refusal("memory_mib", "memory_mb");
    assert!(error.starts_with("/etc/lockstep/vm.toml:5: "), "{error}");
    assert!(error.contains("memory_mb"), "{error}");
}

#[test]
fn a_value_out_of_range_is_refused_with_line_key_and_range() {
    assert_eq!(
        refusal("memory_mib = 64", "memory_mib = 4"),
        "/etc/lockstep/vm.toml:5: `vm.memory_mib`: must be from 16 to 3072"
    );
}

#[test]
fn more_vcpus_than_a_vm_can_have_are_refused_and_their_number_must_be_equal_on_both_hosts() {
    assert_eq!(
        refusal("memory_mib = 64", "vcpus = 9\nmemory_mib = 64"),
        "/etc/lockstep/vm.toml:5: `vm.vcpus`: must be from 1 to 8"
    );
    let two = parse(&GOOD.replace("memory_mib", "vcpus = 2\nmemory_mib")).unwrap();
    assert_eq!(two.vm.vcpus.get(), 2);
    assert_ne!(two.digest(), parse(GOOD).unwrap().digest());
}

#[test]
fn a_lease_that_outlives_the_timeout_is_refused() {
    let error = refusal("[arbiter]", "[pair]\nlease_ms = 120\n[arbiter]");
    assert!(
        error.contains("`pair.lease_ms`: must be below pair.timeout_ms"),
        "{error}"
    );
}

fn timed(pair: &str) -> Result<Config, ConfigError> {
    parse(&GOOD.replacen("[arbiter]", &format!("[pair]\n{pair}\n[arbiter]"), 1))
}

#[test]
fn a_heartbeat_that_is_too_slow_for_the_lease_is_refused() {
    let error = timed("heartbeat_ms = 60").unwrap_err().to_string();
    assert!(
        error.contains("`pair.heartbeat_ms`: must be below half of pair.lease_ms, which is 100"),
        "{error}"
    );
}

#[test]
fn a_heartbeat_of_half_the_lease_is_refused_here_and_not_when_the_hosts_meet() {
    let error = timed("heartbeat_ms = 50").unwrap_err().to_string();
    assert!(
        error.starts_with("/etc/lockstep/vm.toml:12: `pair.heartbeat_ms`: must be below half"),
        "{error}"
    );
    assert!(timed("heartbeat_ms = 49").is_ok());
}

#[test]
fn a_heartbeat_of_nothing_and_a_timeout_longer_than_hosts_agree_to_are_refused() {
    let error = timed("heartbeat_ms = 0").unwrap_err().to_string();
    assert!(
        error.ends_with("`pair.heartbeat_ms`: must be at least 1"),
        "{error}"
    );
    let error = timed("timeout_ms = 60001").unwrap_err().to_string();
    assert!(
        error.ends_with("`pair.timeout_ms`: must be at most 60000"),
        "{error}"
    );
    assert!(timed("timeout_ms = 60000").is_ok());
}

#[test]
fn a_micro_guest_without_a_network_is_refused_and_one_without_a_disk_is_not() {
    let net = "[vm.net]\nmac = \"52:54:00:4c:53:01\"\n";
    let error = refusal(net, "");
    assert!(
        error.starts_with("/etc/lockstep/vm.toml:3: `vm.net`: is missing, but the micro guest"),
        "{error}"
    );
    assert!(parse(&GOOD.replace(net, "").replace("guest = \"micro\"", LINUX)).is_ok());
    assert!(parse(&GOOD.replace("[vm.disk]\nmode = \"shared\"\n", "")).is_ok());
}

#[test]
fn an_address_without_a_port_is_refused_with_an_example() {
    let error = refusal("127.0.0.2:7001", "127.0.0.2");
    assert!(
        error.contains("`node.a.address`") && error.contains("192.0.2.1:7001"),
        "{error}"
    );
}

#[test]
fn a_multicast_mac_is_refused() {
    assert!(refusal("52:54:00", "53:54:00").contains("not a unicast MAC address"));
}

#[test]
fn a_vm_with_a_network_needs_a_tap_on_each_node() {
    assert!(refusal("tap = \"lsb\"\n", "").contains("`node.b.tap`: is missing, but the VM has [vm.net]"));
}

#[test]
fn two_nodes_cannot_share_a_run_directory() {
    assert!(refusal("run/b", "run/a").contains("`node.b.run_dir`: is that of node a too"));
}

#[test]
fn three_nodes_are_a_pair_only_if_one_is_a_spare() {
    let third = GOOD
        .split_once("[node.b]")
        .unwrap()
        .1
        .replace("127.0.0.3", "127.0.0.4");
    let error = parse(&format!("{GOOD}\n[node.c]\n{third}"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there are 3 nodes without `spare = true`"),
        "{error}"
    );

    let third = third.replace("run/b", "run/c");
    let config = parse(&format!("{GOOD}\n[node.c]\nspare = true\n{third}"));
    let config = config.unwrap();
    let names = |of: &str| -> Vec<_> { config.others_of(of).map(|node| node.name.to_string()).collect() };
    assert_eq!(config.peer_of("a").unwrap().name.as_str(), "b");
    assert_eq!(names("b"), ["a", "c"]);
    assert_eq!(names("c"), ["a", "b"]);
}

#[test]
fn a_directory_for_a_quic_arbiter_is_refused() {
    assert!(refusal("kind = \"file\"", "kind = \"quic\"").contains("take it out"));
}

#[test]
fn the_digest_ignores_where_the_file_and_the_hosts_are() {
    let elsewhere = Config::parse(
        Path::new("/other/vm.toml"),
        &GOOD.replace("127.0.0.2", "192.0.2.7"),
    )
    .unwrap();
    assert_eq!(parse(GOOD).unwrap().digest(), elsewhere.digest());
}

#[test]
fn the_digest_changes_with_what_the_guest_could_notice() {
    let digest = parse(GOOD).unwrap().digest();
    assert_ne!(
        digest,
        parse(&GOOD.replace("memory_mib = 64", "memory_mib = 65"))
            .unwrap()
            .digest()
    );
    assert_ne!(
        digest,
        parse(&GOOD.replace("4c:53:01", "4c:53:02")).unwrap().digest()
    );
    assert_ne!(digest, parse(&GOOD.replace("ip=10", "ip=11")).unwrap().digest());
    assert_ne!(digest, parse(&GOOD.replace("shared", "mirror")).unwrap().digest());
    assert_ne!(
        digest,
        parse(&GOOD.replace("dir = \"arbiter\"", "dir = \"other\""))
            .unwrap()
            .digest()
    );
}

#[test]
fn a_disk_is_shared_unless_it_is_mirrored_and_nothing_else() {
    let mode = |text: &str| parse(text).unwrap().vm.disk.unwrap().mode;
    assert_eq!(mode(GOOD), DiskMode::Shared);
    assert_eq!(mode(&GOOD.replace("mode = \"shared\"\n", "")), DiskMode::Shared);
    assert_eq!(mode(&GOOD.replace("shared", "mirror")), DiskMode::Mirror);
    let other = refusal("\"shared\"", "\"both\"");
    assert!(
        other.contains("unknown variant `both`, expected `shared` or `mirror`"),
        "{other}"
    );
}

const LINUX: &str = "kernel = \"vmlinuz\"\ninitrd = \"initrd\"\nconsole = \"socket\"";

#[test]
fn a_kernel_makes_the_guest_linux() {
    let config = parse(&GOOD.replacen("guest = \"micro\"", LINUX, 1)).unwrap();
    let kernel = PathBuf::from("/etc/lockstep/vmlinuz");
    let initrd = Some(PathBuf::from("/etc/lockstep/initrd"));
    assert_eq!(config.vm.guest, Guest::Linux { kernel, initrd });
    assert_eq!(config.vm.console, ConsoleMode::Socket);
    assert_ne!(config.digest(), parse(GOOD).unwrap().digest());
}

#[test]
fn a_guest_that_does_not_go_with_its_files_is_refused() {
    let stray = refusal("guest = \"micro\"", "guest = \"micro\"\nkernel = \"vmlinuz\"");
    assert!(
        stray.contains("`vm.kernel`: means nothing to the micro guest"),
        "{stray}"
    );
    let missing = refusal("guest = \"micro\"", "guest = \"linux\"");
    assert!(missing.contains("`vm.kernel`: is missing"), "{missing}");
    let lonely = refusal("guest = \"micro\"", "initrd = \"initrd\"");
    assert!(lonely.contains("`vm.initrd`: needs `vm.kernel`"), "{lonely}");
}

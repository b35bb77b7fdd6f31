//! The hosts of a configuration, from the file as written to checked values; called by `validate.rs` alone.

use std::collections::BTreeMap;

use lockstep_protocol::ids::NodeName;
use toml::Spanned;

use super::raw;
use super::validate::{NAME_RULE, Source};
use super::{ConfigError, DeviceSockets, Node, Vm};

type RawNodes = Spanned<BTreeMap<Spanned<String>, Spanned<raw::Node>>>;

pub(super) fn nodes(at: &Source<'_>, raw: RawNodes, vm: &Vm) -> Result<Vec<Node>, ConfigError> {
    let start = raw.span().start;
    let mut nodes = Vec::new();
    for (name, node) in raw.into_inner() {
        nodes.push(self::node(at, &name, node, vm)?);
    }
    let count = nodes.iter().filter(|node: &&Node| !node.is_spare).count();
    if count != 2 || nodes.len() > NODES_MAX {
        let problem = format!(
            "there are {count} nodes without `spare = true`, and {} in all; a pair is exactly two [node.NAME] tables, beside \
             which there may be spares, {NODES_MAX} nodes in all",
            nodes.len()
        );
        return Err(at.refuse(start, "node", problem));
    }
    for (index, second) in nodes.iter().enumerate() {
        for first in &nodes[..index] {
            differ(at, start, first, second)?;
        }
    }
    Ok(nodes)
}

/// Two hosts are found at two places.
fn differ(at: &Source<'_>, start: usize, first: &Node, second: &Node) -> Result<(), ConfigError> {
    if first.address == second.address {
        let key = format!("node.{}.address", second.name);
        return Err(at.refuse(
            start,
            &key,
            format!("is the address of node {} too; give each its own", first.name),
        ));
    }
    if first.run_dir == second.run_dir {
        let key = format!("node.{}.run_dir", second.name);
        return Err(at.refuse(
            start,
            &key,
            format!("is that of node {} too; give each its own", first.name),
        ));
    }
    Ok(())
}

fn node(
    at: &Source<'_>,
    spanned_name: &Spanned<String>,
    node: Spanned<raw::Node>,
    vm: &Vm,
) -> Result<Node, ConfigError> {
    let start = node.span().start;
    let node = node.into_inner();
    let name: NodeName = spanned_name.get_ref().parse().map_err(|_| {
        at.refuse(
            spanned_name.span().start,
            &format!("node.{}", spanned_name.get_ref()),
            NAME_RULE,
        )
    })?;
    let key = |field: &str| format!("node.{name}.{field}");
    let address = at.socket_address(&key("address"), &node.address)?;
    let listen = match &node.listen {
        Some(listen) => at.socket_address(&key("listen"), listen)?,
        None => address,
    };
    let net_process = device_sockets(
        at,
        &key("net_socket"),
        &key("net_staging"),
        node.net_socket,
        node.net_staging,
    )?;
    let blk_process = device_sockets(
        at,
        &key("blk_socket"),
        &key("blk_staging"),
        node.blk_socket,
        node.blk_staging,
    )?;
    if vm.net.is_some() && node.tap.is_none() && net_process.is_none() {
        let problem = "is missing, but the VM has [vm.net]; name this host's tap, as in \"lstap0\"";
        return Err(at.refuse(start, &key("tap"), problem));
    }
    if vm.disk.is_some() && node.disk.is_none() && blk_process.is_none() {
        let problem =
            "is missing, but the VM has [vm.disk]; name the disk file or block device as this host sees it";
        return Err(at.refuse(start, &key("disk"), problem));
    }
    if let Some(tap) = &node.tap
        && !is_interface_name(tap.get_ref())
    {
        let problem = "is not an interface name: 1 to 15 bytes, no space, no '/'";
        return Err(at.refuse(tap.span().start, &key("tap"), problem));
    }
    Ok(Node {
        address,
        listen,
        certificate: at.path_at(&key("certificate"), node.certificate)?,
        key: at.path_at(&key("key"), node.key)?,
        tap: node.tap.map(Spanned::into_inner),
        disk: at.optional_path(&key("disk"), node.disk)?,
        run_dir: at.path_at(&key("run_dir"), node.run_dir)?,
        net_process,
        blk_process,
        is_spare: node.spare,
        name,
    })
}

fn device_sockets(
    at: &Source<'_>,
    vhost_key: &str,
    staging_key: &str,
    vhost: Option<Spanned<String>>,
    staging: Option<Spanned<String>>,
) -> Result<Option<DeviceSockets>, ConfigError> {
    match (vhost, staging) {
        (None, None) => Ok(None),
        (Some(vhost), Some(staging)) => Ok(Some(DeviceSockets {
            vhost: at.path_at(vhost_key, vhost)?,
            staging: at.path_at(staging_key, staging)?,
        })),
        (Some(vhost), None) => Err(at.refuse(
            vhost.span().start,
            vhost_key,
            format!("needs `{staging_key}` beside it"),
        )),
        (None, Some(staging)) => Err(at.refuse(
            staging.span().start,
            staging_key,
            format!("needs `{vhost_key}` beside it"),
        )),
    }
}

fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

/// A VM has one backup at a time; more hosts than this are no better than a person who puts another one in.
const NODES_MAX: usize = 8;

//! Names, addresses, and what peers see of a lost node.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use scrfs_tests::Loss;

use crate::helpers::{
    ECHO_PORT, address, connect_echo, hears_nothing, helper_in, is_timeout, rsh, start, text,
};
use crate::{SILENCE, SOON};

#[test]
fn nodes_know_and_reach_each_other_by_name() {
    let cluster = start(3);
    for from in 0..=3 {
        assert_eq!(
            text(&cluster, from, "uname -n; cat /etc/hostname"),
            format!("node{from}\nnode{from}")
        );
        for to in 0..=3 {
            let output = rsh(&cluster, from, to).arg("uname -n").output().unwrap();
            assert_eq!(
                output.stdout,
                format!("node{to}\n").as_bytes(),
                "{output:?}"
            );
        }
    }
}

#[test]
fn nothing_of_the_network_exists_on_the_machine() {
    let ip = |what| {
        let output = Command::new("ip").args(["-brief", what]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let links = || {
        let name = |line: &str| line.split_whitespace().next().unwrap_or("").to_owned();
        ip("link").lines().map(name).collect::<Vec<_>>()
    };
    let before = links();
    let cluster = start(1);
    let inside = address(&cluster, 1, 0).ip().to_string();
    assert!(text(&cluster, 1, "ip address").contains(&inside));
    assert!(!ip("address").contains(&inside));
    assert_eq!(links(), before);
}

#[test]
fn a_crash_is_felt_at_once() {
    let cluster = start(2);
    let mut echo = helper_in(&cluster, 2, "echo");
    let mut stream = connect_echo(&cluster);
    cluster.kill(2, Loss::Crash).unwrap();
    let end = stream.read(&mut [0]);
    assert!(
        matches!(&end, Ok(0)) || matches!(&end, Err(error) if !is_timeout(error)),
        "{end:?}"
    );
    let to = address(&cluster, 2, ECHO_PORT);
    let again = cluster
        .within_network(1, || Ok(TcpStream::connect(to).unwrap_err()))
        .unwrap();
    assert_eq!(again.kind(), ErrorKind::ConnectionRefused);
    echo.wait().unwrap();
}

#[test]
fn a_loss_of_power_is_silence() {
    let cluster = start(2);
    let mut echo = helper_in(&cluster, 2, "echo");
    let mut stream = connect_echo(&cluster);
    cluster.kill(2, Loss::Power).unwrap();
    echo.wait().unwrap();
    stream.write_all(b"still there?").unwrap();
    assert!(hears_nothing(&mut stream));
    let to = address(&cluster, 2, ECHO_PORT);
    let again = cluster
        .within_network(1, || {
            Ok(TcpStream::connect_timeout(&to, SILENCE).unwrap_err())
        })
        .unwrap();
    assert!(is_timeout(&again), "{again}");
}

#[test]
fn a_cut_cable_is_silence_until_it_is_mended() {
    let cluster = start(2);
    let mut echo = helper_in(&cluster, 2, "echo");
    let mut stream = connect_echo(&cluster);
    cluster.link(2, false).unwrap();
    stream.write_all(b"later").unwrap();
    assert!(hears_nothing(&mut stream));
    cluster.link(2, true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"later");
    drop(stream);
    echo.wait().unwrap();
}

#[test]
fn a_hung_node_accepts_but_does_not_answer_until_resumed() {
    let cluster = start(2);
    let mut echo = helper_in(&cluster, 2, "echo");
    let mut stream = connect_echo(&cluster);
    cluster.hang(2).unwrap();
    stream.write_all(b"later").unwrap();
    assert!(hears_nothing(&mut stream));
    let shell = address(&cluster, 2, 22);
    cluster
        .within_network(1, || Ok(TcpStream::connect(shell)?))
        .unwrap();
    cluster.resume(2).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"later");
    // And it can be killed while it hangs.
    cluster.hang(2).unwrap();
    cluster.kill(2, Loss::Crash).unwrap();
    echo.wait().unwrap();
}

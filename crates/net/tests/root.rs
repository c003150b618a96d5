//! The data plane on a real kernel, in host namespaces made for each test. Needs root.
//!
//! Without root every test prints that it is skipped; with `E2E_REQUIRED=1` that is a failure.

#[path = "root/lab.rs"]
mod lab;

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{
    Lab, MachineLab, accept, become_user, dial, dial_as, echo, ip, listen_in, prefix, receive, say,
    say_urgently, v4, v6,
};
use perch_net::{Attach, HostAccess, NetError, Plane, Ports, Prefix48, Visible, doctor};

/// The blueprint's port.
const HTTP: u16 = 80;

#[test]
fn a_call_to_a_flycast_address_reaches_the_listener_and_shows_what_was_dialled() {
    let Some(lab) = Lab::start("dispatch") else { return };
    let network = lab.network("fdaa:0:1::");
    let caller = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    let visible = Visible::Network(network);
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP), (8000, 8100)]), visible)
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");

    for port in [HTTP, 8000, 8050, 8100] {
        let client = dial(caller.netns.as_fd(), (app, port)).expect("connect");
        let (server, local, peer) = accept(&listeners.tcp6);
        assert_eq!((local.ip(), local.port()), (IpAddr::V6(app), port));
        assert_eq!(peer.ip(), IpAddr::V6(caller.private_ip), "the caller keeps its address");
        say(client, server);
    }
}

#[test]
fn unpublished_ports_and_addresses_are_refused_at_once() {
    let Some(lab) = Lab::start("refused") else { return };
    let network = lab.network("fdaa:0:1::");
    let caller = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    let visible = Visible::Network(network);
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP), (8000, 8100)]), visible)
        .expect("publish");
    let _listeners = lab.plane.listeners().expect("listeners");
    let refused = |addr, port| {
        let error = dial(caller.netns.as_fd(), (addr, port)).expect_err("nothing is published");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{addr} port {port}");
    };

    for port in [81, 7999, 8101, 10080, 65535] {
        refused(app, port);
    }
    refused(v6("fdaa:0:1:0:1::3"), HTTP);
    lab.plane
        .publish(app.into(), Ports::tcp(&[(443, 443)]), visible)
        .expect("publish other ports instead");
    refused(app, HTTP);
    refused(app, 8050);
    dial(caller.netns.as_fd(), (app, 443)).expect("the new port");
    lab.plane.unpublish(app.into()).expect("unpublish");
    lab.plane.unpublish(app.into()).expect("unpublish again");
    refused(app, 443);
}

#[test]
fn open_connections_outlive_the_publication_of_their_address() {
    let Some(lab) = Lab::start("drain") else { return };
    let network = lab.network("fdaa:0:1::");
    let caller = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    let client = dial(caller.netns.as_fd(), (app, HTTP)).expect("connect");
    let (server, _, _) = accept(&listeners.tcp6);

    lab.plane.unpublish(app.into()).expect("unpublish");

    say(client, server);
}

#[test]
fn a_published_address_without_a_listener_stays_silent_until_one_comes() {
    let Some(lab) = Lab::start("silent") else { return };
    let network = lab.network("fdaa:0:1::");
    let caller = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");

    let error = dial(caller.netns.as_fd(), (app, HTTP)).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::TimedOut);

    let listeners = lab.plane.listeners().expect("listeners");
    dial(caller.netns.as_fd(), (app, HTTP)).expect("connect");
    drop(listeners);
    lab.plane.listeners().expect("the next listeners take the place of the former");
}

#[test]
fn the_shared_and_the_public_addresses_serve_every_network_and_the_host() {
    let Some(lab) = Lab::start("public") else { return };
    lab.network("fdaa:0:1::");
    lab.network("fdaa:0:2::");
    let one = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let two = lab.machine("m2", "fdaa:0:2:a7b:1:0:1:2", 2);
    let (public, shared) = (v6("2001:db8:5::7"), v4("192.0.2.10"));
    for addr in [public.into(), shared.into()] {
        lab.plane.publish(addr, Ports::tcp(&[(HTTP, HTTP)]), Visible::Everyone).expect("publish");
    }
    let listeners = lab.plane.listeners().expect("listeners");

    for from in [one.netns.as_fd(), two.netns.as_fd(), lab.host()] {
        dial(from, (public, HTTP)).expect("connect to the public address");
        assert_eq!(accept(&listeners.tcp6).1.ip(), IpAddr::V6(public));
        dial(from, (shared, HTTP)).expect("connect to the shared address");
        let (_, local, _) = accept(&listeners.tcp4);
        assert_eq!((local.ip(), local.port()), (IpAddr::V4(shared), HTTP));
        assert!(echo(from, public.into()), "ping the public address");
        let error = dial(from, (shared, 81)).expect_err("not published");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let error =
        lab.plane.publish(shared.into(), Ports::tcp(&[]), Visible::Network(prefix("fdaa:0:1::")));
    assert!(matches!(error, Err(NetError::NotForOneNetwork { .. })));
}

#[test]
fn pings_are_answered_with_nothing_running() {
    let Some(lab) = Lab::start("ping") else { return };
    let network = lab.network("fdaa:0:1::");
    lab.network("fdaa:0:2::");
    let caller = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let stranger = lab.machine("m2", "fdaa:0:2:a7b:1:0:1:2", 2);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane.publish(app.into(), Ports::tcp(&[]), Visible::Network(network)).expect("publish");

    assert!(echo(caller.netns.as_fd(), app.into()), "FC-05");
    assert!(echo(caller.netns.as_fd(), v6("fdaa::3").into()));
    assert!(echo(caller.netns.as_fd(), v6("fdaa:0:1::3").into()));
    assert!(!echo(stranger.netns.as_fd(), app.into()));
    assert!(!echo(stranger.netns.as_fd(), v6("fdaa:0:1::3").into()));
}

#[test]
fn machines_of_one_network_reach_each_other_and_those_of_two_do_not() {
    let Some(lab) = Lab::start("isolation") else { return };
    let first = lab.network("fdaa:0:1::");
    let second = lab.network("fdaa:0:2::");
    let one = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let peer = lab.machine("m2", "fdaa:0:1:a7b:1:0:2:2", 2);
    let stranger = lab.machine("m3", "fdaa:0:2:a7b:1:0:1:2", 4);
    let server = listen_in(peer.netns.as_fd(), "[::]:0");
    let port = server.local_addr().expect("a bound socket").port();
    let (mine, theirs) = (v6("fdaa:0:1:0:1::2"), v6("fdaa:0:2:0:1::2"));
    let http = [(HTTP, HTTP)];
    lab.plane.publish(mine.into(), Ports::tcp(&http), Visible::Network(first)).expect("publish");
    lab.plane.publish(theirs.into(), Ports::tcp(&http), Visible::Network(second)).expect("publish");
    let _listeners = lab.plane.listeners().expect("listeners");

    dial(one.netns.as_fd(), (peer.private_ip, port)).expect("6PN within a network");
    let error = dial(stranger.netns.as_fd(), (peer.private_ip, port)).expect_err("6PN across");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "refused at once");
    dial(one.netns.as_fd(), (mine, HTTP)).expect("own Flycast address");
    for (from, to) in [(&one, theirs), (&stranger, mine)] {
        let error = dial(from.netns.as_fd(), (to, HTTP)).expect_err("other Flycast address");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    // FC-13: published for another network only, it is that network's.
    lab.plane.publish(mine.into(), Ports::tcp(&http), Visible::Network(second)).expect("publish");
    dial(stranger.netns.as_fd(), (mine, HTTP)).expect("made visible");
    dial(one.netns.as_fd(), (mine, HTTP)).expect_err("no longer visible to its own network");
    let link = listen_in(peer.netns.as_fd(), "0.0.0.0:0");
    let port = link.local_addr().expect("a bound socket").port();
    dial(one.netns.as_fd(), (peer.link.1, port)).expect_err("links are closed to each other");
}

#[test]
fn a_forged_source_gets_nowhere() {
    let Some(lab) = Lab::start("forged") else { return };
    lab.network("fdaa:0:1::");
    lab.network("fdaa:0:2::");
    let victim = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let friend = lab.machine("m2", "fdaa:0:1:a7b:1:0:2:2", 2);
    let forger = lab.machine("m3", "fdaa:0:2:a7b:1:0:1:2", 4);
    let inbox = lab::udp_in(victim.netns.as_fd(), "[::]:0");
    let port = inbox.local_addr().expect("a bound socket").port();
    let resolver = std::net::UdpSocket::from(lab.plane.listeners().expect("listeners").dns_udp);

    for forged in ["fdaa:0:1:a7b:1:0:2:2", "fdaa:0:1:a7b:9:0:9:2", "fdaa:0:1:0:1::2"] {
        ip(forger.netns.as_fd(), &format!("-6 addr replace {forged}/128 dev eth0 nodad"));
        let liar = lab::udp_in(forger.netns.as_fd(), &format!("[{forged}]:0"));
        for to in [(victim.private_ip, port), (v6("fdaa::3"), 53)] {
            // An error would be an ICMP answer; the datagram must vanish instead.
            assert_eq!(liar.send_to(b"forged", to).expect("sent"), 6);
        }
    }
    let honest = lab::udp_in(friend.netns.as_fd(), "[::]:0");
    honest.send_to(b"honest", (victim.private_ip, port)).expect("sent");
    honest.send_to(b"honest", (v6("fdaa::3"), 53)).expect("sent");

    for socket in [inbox, resolver] {
        let (text, from) = receive(&socket).expect("the honest datagram");
        assert_eq!((text.as_str(), from), ("honest", IpAddr::V6(friend.private_ip)));
    }
}

#[test]
fn the_resolver_answers_at_both_addresses_and_sees_who_asks() {
    let Some(lab) = Lab::start("resolver") else { return };
    lab.network("fdaa:0:1::");
    lab.network("fdaa:0:2::");
    let asker = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let listeners = lab.plane.listeners().expect("listeners");
    let resolver = std::net::UdpSocket::from(listeners.dns_udp);

    for addr in ["fdaa::3", "fdaa:0:1::3"] {
        let socket = lab::udp_in(asker.netns.as_fd(), "[::]:0");
        socket.connect((v6(addr), 53)).expect("connect");
        socket.send(b"question").expect("sent");
        let from = lab::answer(&resolver, "question", "answer");
        assert_eq!(from.ip(), IpAddr::V6(asker.private_ip));
        assert_eq!(receive(&socket), Some(("answer".to_owned(), v6(addr).into())));
        dial(asker.netns.as_fd(), (v6(addr), 53)).expect("DNS over TCP");
        assert_eq!(accept(&listeners.dns_tcp).2.ip(), IpAddr::V6(asker.private_ip));
    }
    let socket = lab::udp_in(asker.netns.as_fd(), "[::]:0");
    socket.connect((v6("fdaa:0:2::3"), 53)).expect("connect");
    socket.send(b"question").expect("sent");
    let refused = socket.recv(&mut [0; 64]).expect_err("another network's resolver");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_plane_reaches_a_machine_over_its_link_on_any_low_port() {
    let Some(lab) = Lab::start("link") else { return };
    lab.network("fdaa:0:1::");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let server = listen_in(machine.netns.as_fd(), "0.0.0.0:80");

    let client = dial(lab.plane.netns_fd(), (machine.link.1, 80)).expect("connect");
    let (server, peer) = server.accept().expect("accept");
    assert_eq!(peer.ip(), IpAddr::V4(machine.link.0), "FC-47");
    say(client, server);
    let sysctl = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        let read = perch_net::run_in(machine.netns.as_fd(), || std::fs::read_to_string(path));
        read.expect("enter").expect("read").trim().replace('\t', " ")
    };
    assert_eq!(sysctl("ip_unprivileged_port_start"), "0");
    assert_eq!(sysctl("ping_group_range"), "0 2147483647");
}

#[test]
fn urgent_data_come_in_line_with_the_rest() {
    let Some(lab) = Lab::start("urgent") else { return };
    let network = lab.network("fdaa:0:1::");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    let client = dial(machine.netns.as_fd(), (app, HTTP)).expect("connect");
    let (server, _, _) = accept(&listeners.tcp6);
    say_urgently(&client, &server);
    say(client, server);

    let server = listen_in(machine.netns.as_fd(), "0.0.0.0:80");
    let client = dial(lab.plane.netns_fd(), (machine.link.1, HTTP)).expect("connect");
    let (server, _) = server.accept().expect("accept");
    say_urgently(&server, &client);
    say(client, server);
}

#[test]
fn a_machine_is_reachable_and_may_call_the_moment_it_is_attached() {
    let Some(lab) = Lab::start("moment") else { return };
    let network = lab.network("fdaa:0:1::");
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    lab.plane.stock_up().expect("the first runs get a namespace made in advance");
    for run in 0..40 {
        let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
        let _server = listen_in(machine.netns.as_fd(), "0.0.0.0:80");
        // A packet that is lost costs a second.
        let call = dial(machine.netns.as_fd(), (app, HTTP));
        assert!(call.is_ok(), "run {run}: {call:?}");
        accept(&listeners.tcp6);
        let called = dial(lab.plane.netns_fd(), (machine.link.1, HTTP));
        assert!(called.is_ok(), "run {run}: {called:?}");
    }
}

#[test]
fn the_host_is_a_member_of_the_networks_that_have_its_peer_only() {
    let Some(lab) = Lab::start("peer") else { return };
    let (home, away) = (prefix("fdaa:0:1::"), prefix("fdaa:0:2::"));
    let peer = v6("fdaa:0:1:a7b:1:0:a:2");
    lab.plane.ensure_network(home, Some(peer)).expect("network");
    lab.plane.ensure_network(away, None).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let other = lab.machine("m2", "fdaa:0:2:a7b:1:0:1:2", 2);
    let (app, foreign) = (v6("fdaa:0:1:0:1::2"), v6("fdaa:0:2:0:1::2"));
    for (addr, network) in [(app, home), (foreign, away)] {
        let visible = Visible::Network(network);
        lab.plane.publish(addr.into(), Ports::tcp(&[(HTTP, HTTP)]), visible).expect("publish");
    }
    let listeners = lab.plane.listeners().expect("listeners");
    let server = listen_in(machine.netns.as_fd(), "[::]:0");
    let port = server.local_addr().expect("a bound socket").port();
    let secret = listen_in(other.netns.as_fd(), "[::]:0");
    let secret_port = secret.local_addr().expect("a bound socket").port();
    let on_host = listen_in(lab.host(), "[::]:0");
    let host_port = on_host.local_addr().expect("a bound socket").port();

    dial(lab.host(), (app, HTTP)).expect("Flycast from the host");
    assert_eq!(accept(&listeners.tcp6).2.ip(), IpAddr::V6(peer));
    dial(lab.host(), (machine.private_ip, port)).expect("6PN from the host");
    assert_eq!(server.accept().expect("accept").1.ip(), IpAddr::V6(peer));
    dial(lab.host(), (foreign, HTTP)).expect_err("the host is no member there");
    dial(lab.host(), (other.private_ip, secret_port)).expect_err("the host is no member there");
    let error = dial(machine.netns.as_fd(), (peer, host_port)).expect_err("nothing new comes in");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    lab.plane.ensure_network(home, None).expect("the host leaves");
    dial(lab.host(), (app, HTTP)).expect_err("no longer a member");
    let leftovers = lab.host_sees("ip -6 route show table all") + &lab.host_sees("ip -o addr");
    assert!(!leftovers.contains(&peer.to_string()), "{leftovers}");
    let wrong = lab.plane.ensure_network(away, Some(peer));
    assert!(matches!(wrong, Err(NetError::ForeignAddress { .. })));
}

#[test]
fn what_is_not_tcp_reaches_the_host_as_an_answer_only() {
    let Some(lab) = Lab::start("answers") else { return };
    let network = prefix("fdaa:0:1::");
    let peer = v6("fdaa:0:1:a7b:1:0:a:2");
    lab.plane.ensure_network(network, Some(peer)).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let resolver = std::net::UdpSocket::from(lab.plane.listeners().expect("listeners").dns_udp);
    let on_host = lab::udp_in(lab.host(), "[::]:0");
    let host_port = on_host.local_addr().expect("a bound socket").port();
    let in_machine = lab::udp_in(machine.netns.as_fd(), "[::]:0");
    let machine_port = in_machine.local_addr().expect("a bound socket").port();
    let from_plane = lab.plane.enter(|| std::net::UdpSocket::bind("[fdaa::3]:0")).expect("enter");

    in_machine.send_to(b"new", (peer, host_port)).expect("sent");
    let refused = from_plane.expect("bound").send_to(b"new", (peer, host_port));
    assert_eq!(refused.expect_err("not even the proxy").kind(), ErrorKind::PermissionDenied);
    assert!(!echo(machine.netns.as_fd(), peer.into()), "the host answers no pings either");
    on_host.send_to(b"question", (machine.private_ip, machine_port)).expect("sent");
    assert_eq!(receive(&in_machine).map(|(_, from)| from), Some(IpAddr::V6(peer)));
    in_machine.send_to(b"answer", (peer, host_port)).expect("sent");

    assert_eq!(receive(&on_host), Some(("answer".to_owned(), machine.private_ip.into())));
    assert!(echo(lab.host(), machine.private_ip.into()), "and its own pings are answered");
    let addr = v6("fdaa:0:1::3");
    on_host.send_to(b"name", (addr, 53)).expect("sent");
    let asker = lab::answer(&resolver, "name", "address");
    assert_eq!(receive(&on_host), Some(("address".to_owned(), addr.into())));
    let unasked = resolver.send_to(b"more", (asker.ip(), 9));
    assert_eq!(unasked.expect_err("another port").kind(), ErrorKind::PermissionDenied);
}

#[test]
fn a_question_of_the_host_opens_nothing_but_the_way_of_its_answer() {
    let Some(lab) = Lab::start("way") else { return };
    let peer = v6("fdaa:0:1:a7b:1:0:a:2");
    lab.plane.ensure_network(prefix("fdaa:0:1::"), Some(peer)).expect("network");
    let asked = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let other = lab.machine("m2", "fdaa:0:1:a7b:1:0:2:2", 2);
    let on_host = lab::udp_in(lab.host(), "[::]:0");
    let host_port = on_host.local_addr().expect("a bound socket").port();
    let service = lab::udp_in(lab.host(), "[::]:0");
    let service_port = service.local_addr().expect("a bound socket").port();
    let in_machine = lab::udp_in(asked.netns.as_fd(), "[::]:0");
    let machine_port = in_machine.local_addr().expect("a bound socket").port();
    let second = lab::udp_in(asked.netns.as_fd(), "[::]:0");
    let in_other = lab::udp_in(other.netns.as_fd(), &format!("[::]:{machine_port}"));
    on_host.send_to(b"question", (asked.private_ip, machine_port)).expect("sent");
    assert_eq!(receive(&in_machine).map(|(_, from)| from), Some(IpAddr::V6(peer)));

    in_machine.send_to(b"to a service", (peer, service_port)).expect("sent");
    second.send_to(b"from another port", (peer, host_port)).expect("sent");
    in_other.send_to(b"from another Machine", (peer, host_port)).expect("sent");
    // More than one packet holds: its pieces are put together before they are judged.
    in_machine.send_to(&[b'x'; 4000], (peer, host_port)).expect("sent");

    lab::wait_readable(&on_host);
    let (len, from) = on_host.recv_from(&mut [0; 5000]).expect("the answer");
    assert_eq!((len, from.ip()), (4000, IpAddr::V6(asked.private_ip)));
    on_host.set_nonblocking(true).expect("an open socket");
    service.set_nonblocking(true).expect("an open socket");
    for socket in [&on_host, &service] {
        let nothing = socket.recv_from(&mut [0; 64]).expect_err("nothing else came");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    }
    let closed = lab::udp_in(lab.host(), "[::]:0");
    drop(second);
    closed.connect((asked.private_ip, 9)).expect("connect");
    closed.send(b"to nobody").expect("sent");
    let refused = closed.recv(&mut [0; 64]).expect_err("nobody listens there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "the host is told");
}

#[test]
fn the_plane_tracks_nothing_of_ipv6() {
    let Some(lab) = Lab::start("stateless") else { return };
    let peer = v6("fdaa:0:1:a7b:1:0:a:2");
    lab.plane.ensure_network(prefix("fdaa:0:1::"), Some(peer)).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let inbox = lab::udp_in(machine.netns.as_fd(), "[::]:0");
    let port = inbox.local_addr().expect("a bound socket").port();
    let on_host = lab::udp_in(lab.host(), "[::]:0");

    on_host.send_to(b"hello", (machine.private_ip, port)).expect("sent");
    assert!(receive(&inbox).is_some());

    let rules = lab::output(lab.plane.netns_fd(), "nft list table inet perch");
    for word in ["ct state", "type nat", "masquerade", "dnat"] {
        assert!(!rules.contains(word), "all IPv6 would be tracked for one `{word}`: {rules}");
    }
    let read = || std::fs::read_to_string("/proc/net/nf_conntrack");
    let tracked = perch_net::run_in(lab.plane.netns_fd(), read).expect("enter");
    assert!(!tracked.unwrap_or_default().contains("ipv6"));
}

#[test]
fn a_host_without_ipv4_rules_of_its_own_tracks_no_private_connection() {
    let Some(lab) = Lab::start("untracked") else { return };
    let network = prefix("fdaa:0:1::");
    lab.plane.ensure_network(network, Some(v6("fdaa:0:1:a7b:1:0:a:2"))).expect("network");
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");

    let client = dial(lab.host(), (app, HTTP)).expect("connect");
    let (server, _, _) = accept(&listeners.tcp6);
    say(client, server);

    let rules = lab.host_sees("nft list table ip6 perch_perch0");
    assert!(!rules.contains("ct state"), "one look at a state makes the kernel track all: {rules}");
    for namespace in [lab.host(), lab.plane.netns_fd()] {
        let read = || std::fs::read_to_string("/proc/net/nf_conntrack");
        let Ok(tracked) = perch_net::run_in(namespace, read).expect("enter") else { continue };
        assert!(!tracked.contains("dport=80 "), "{tracked}");
    }
}

#[test]
fn egress_reaches_the_world_but_neither_the_host_nor_metadata() {
    let Some(lab) = Lab::start("egress") else { return };
    lab.network("fdaa:0:1::");
    let world = lab.world();
    lab.plane.refresh_host().expect("learn the host's new address");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let server = listen_in(world.as_fd(), "0.0.0.0:0");
    let port = server.local_addr().expect("a bound socket").port();
    let on_host = listen_in(lab.host(), "0.0.0.0:0");
    let host_port = on_host.local_addr().expect("a bound socket").port();

    let client = dial(machine.netns.as_fd(), (v4("198.51.100.1"), port)).expect("egress");
    let (server, peer) = server.accept().expect("accept");
    assert_eq!(peer.ip(), IpAddr::V4(v4("198.51.100.2")), "under the host's address");
    say(client, server);
    let refused = |addr: Ipv4Addr, port: u16| {
        let error = dial(machine.netns.as_fd(), (addr, port)).expect_err("closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{addr}");
    };
    refused(v4("198.51.100.2"), host_port);
    refused(lab.config.host_link.0, host_port);
    for metadata in ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192"] {
        refused(v4(metadata), HTTP);
    }
    refused(v4("172.16.200.1"), HTTP);
    // And nobody out there reaches in, even with a route.
    ip(world.as_fd(), "route add 192.0.2.10/32 via 198.51.100.2");
    ip(world.as_fd(), "route add 172.16.0.0/16 via 198.51.100.2");
    let all = Visible::Everyone;
    lab.plane
        .publish(lab.config.shared_v4.into(), Ports::tcp(&[(HTTP, HTTP)]), all)
        .expect("publish");
    let _listeners = lab.plane.listeners().expect("listeners");
    dial(world.as_fd(), (lab.config.shared_v4, HTTP)).expect_err("not from outside");
    dial(world.as_fd(), (machine.link.1, HTTP)).expect_err("not from outside");
}

#[test]
fn drop_policies_and_a_flushed_ruleset_on_the_host_change_nothing_private() {
    let Some(lab) = Lab::start("firewall") else { return };
    let network = prefix("fdaa:0:1::");
    lab.plane.ensure_network(network, Some(v6("fdaa:0:1:a7b:1:0:a:2"))).expect("network");
    let one = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let two = lab.machine("m2", "fdaa:0:1:a7b:1:0:2:2", 2);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    let server = listen_in(two.netns.as_fd(), "[::]:0");
    let port = server.local_addr().expect("a bound socket").port();
    let all_works = || {
        dial(one.netns.as_fd(), (app, HTTP)).expect("Flycast from a Machine");
        accept(&listeners.tcp6);
        dial(lab.host(), (app, HTTP)).expect("Flycast from the host");
        accept(&listeners.tcp6);
        dial(one.netns.as_fd(), (two.private_ip, port)).expect("6PN");
        assert!(echo(one.netns.as_fd(), app.into()));
    };

    all_works();
    lab.nft(
        "table inet ufw {
            chain input { type filter hook input priority 0; policy drop;
                iif lo accept; ct state established,related accept; }
            chain forward { type filter hook forward priority 0; policy drop; }
        }",
    );
    all_works();
    lab.nft("flush ruleset");
    all_works();
    assert_eq!(lab.host_sees("nft list tables"), "");
    // The host's own services stay closed meanwhile.
    let on_host = listen_in(lab.host(), "[::]:0");
    let host_port = on_host.local_addr().expect("a bound socket").port();
    let host_peer = v6("fdaa:0:1:a7b:1:0:a:2");
    dial(lab.host(), (host_peer, host_port)).expect("it listens");
    let error = dial(one.netns.as_fd(), (host_peer, host_port)).expect_err("closed to Machines");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    lab.plane.refresh_host().expect("refresh");
    let tables = lab.host_sees("nft list tables");
    for table in ["ip perch_perch0", "ip6 perch_perch0"] {
        assert!(tables.contains(table), "{tables}");
    }
    all_works();
}

#[test]
fn a_plane_is_adopted_with_all_that_it_carries() {
    let Some(lab) = Lab::start("adopt") else { return };
    let network = prefix("fdaa:0:1::");
    let host_peer = v6("fdaa:0:1:a7b:1:0:a:2");
    lab.plane.ensure_network(network, Some(host_peer)).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let (app, wide) = (v6("fdaa:0:1:0:1::2"), v6("2001:db8:5::7"));
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    lab.plane.publish(wide.into(), Ports::tcp(&[(1, 65535)]), Visible::Everyone).expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    let client = dial(machine.netns.as_fd(), (app, HTTP)).expect("connect");
    let (server, _, _) = accept(&listeners.tcp6);

    let lab = lab.restart();

    assert_eq!(lab.plane.networks(), [network]);
    assert_eq!(lab.plane.published(), [IpAddr::V6(wide), IpAddr::V6(app)]);
    assert_eq!(lab.plane.attached(), ["m1"]);
    say(client, server);
    let error = lab.plane.listeners().expect_err("the former listeners still live");
    assert!(error.to_string().contains("listen on"), "{error}");
    dial(lab.host(), (app, HTTP)).expect("the host is still a member");
    assert_eq!(accept(&listeners.tcp6).2.ip(), IpAddr::V6(host_peer));
    lab.plane.unpublish(wide.into()).expect("unpublish what another process published");
    dial(machine.netns.as_fd(), (wide, 5000)).expect_err("refused");
    lab.plane.detach("m1").expect("detach what another process attached");
    lab.plane.remove_network(network).expect("remove what another process opened");
    lab.plane.remove_network(network).expect("remove it again");
    assert!(lab.plane.networks().is_empty() && lab.plane.attached().is_empty());
    dial(lab.host(), (app, HTTP)).expect_err("the network is closed");
}

#[test]
fn a_machine_that_starts_again_takes_the_place_of_its_former_run() {
    let Some(lab) = Lab::start("again") else { return };
    lab.network("fdaa:0:1::");
    let first = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let second = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    assert!(!echo(first.netns.as_fd(), v6("fdaa::3").into()), "the former run is cut off");
    assert!(echo(second.netns.as_fd(), v6("fdaa::3").into()));

    lab.plane.detach("m1").expect("detach");
    lab.plane.detach("m1").expect("detach again");
    assert!(!echo(second.netns.as_fd(), v6("fdaa::3").into()));

    let attach = |name: &str, private_ip: &str| Attach {
        name: name.to_owned(),
        private_ip: v6(private_ip),
        link: (v4("172.16.0.0"), v4("172.16.0.1")),
    };
    let bad_name = lab.plane.attach(&attach("a/b", "fdaa:0:1:a7b:1:0:1:2"));
    assert!(matches!(bad_name, Err(NetError::BadName { .. })));
    let no_network = lab.plane.attach(&attach("m1", "fdaa:0:9:a7b:1:0:1:2"));
    assert!(matches!(no_network, Err(NetError::ForeignAddress { .. })));
    let foreign =
        lab.plane.publish(v6("fdaa:0:9:0:1::2").into(), Ports::tcp(&[]), Visible::Everyone);
    assert!(matches!(foreign, Err(NetError::ForeignAddress { .. })));
}

#[test]
fn a_detach_beside_an_attachment_comes_before_all_of_it_or_after() {
    let Some(lab) = Lab::start("beside") else { return };
    lab.network("fdaa:0:1::");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let detaching = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                lab.plane.detach("m1").expect("detach");
            }
        });
        // In the midst of an attachment a detach would make it fail: "no such device".
        let machines = scope.spawn(|| {
            (0..200).for_each(|_| drop(lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0)));
        });
        let attached = machines.join();
        done.store(true, Ordering::Relaxed);
        detaching.join().expect("no panic");
        attached.expect("every attachment succeeds");
    });
    let last = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    assert!(echo(last.netns.as_fd(), v6("fdaa::3").into()), "nothing lingers");
}

#[test]
fn a_link_whose_namespace_is_dying_makes_way_for_the_next_of_its_name() {
    let Some(lab) = Lab::start("dying") else { return };
    lab.network("fdaa:0:1::");
    // Every thread's Machines die and come back at once, while the kernel is busy with the others'.
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let lab = &lab;
            scope.spawn(move || {
                let (name, addr) = (format!("m{thread}"), format!("fdaa:0:1:a7b:1:0:{thread}:2"));
                for run in 0..100 {
                    let machine = lab.machine(&name, &addr, 2 * thread);
                    let reached = echo(machine.netns.as_fd(), v6("fdaa::3").into());
                    assert!(reached, "run {run} of {name} is not connected");
                }
            });
        }
    });
}

#[test]
fn two_planes_on_one_host_do_not_meet() {
    let Some(lab) = Lab::start("two") else { return };
    let other = lab.second_plane();
    let network = lab.network("fdaa:0:1::");
    other.ensure_network(prefix("fdaa:0:2::"), None).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let twin = MachineLab::attach(&other, "m1", "fdaa:0:2:a7b:1:0:1:2", 0);
    let app = v6("fdaa:0:1:0:1::2");
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    let listeners = lab.plane.listeners().expect("listeners");
    let _others = other.listeners().expect("listeners of the other plane");

    dial(machine.netns.as_fd(), (app, HTTP)).expect("connect");
    accept(&listeners.tcp6);
    dial(twin.netns.as_fd(), (app, HTTP)).expect_err("the other plane");
    dial(twin.netns.as_fd(), (machine.private_ip, HTTP)).expect_err("the other plane");
    assert!(echo(twin.netns.as_fd(), v6("fdaa::3").into()));
    lab.in_host(|| other.remove()).expect("remove one");
    dial(machine.netns.as_fd(), (app, HTTP)).expect("the first goes on");
}

#[test]
fn removing_a_plane_leaves_nothing_and_may_be_repeated() {
    let Some(lab) = Lab::start("remove") else { return };
    let network = prefix("fdaa:0:1::");
    lab.plane.ensure_network(network, Some(v6("fdaa:0:1:a7b:1:0:a:2"))).expect("network");
    let machine = lab.machine("m1", "fdaa:0:1:a7b:1:0:1:2", 0);
    let inside = lab.plane.netns_fd().try_clone_to_owned().expect("a copy");

    let (before, config) = (lab.before.clone(), lab.config.clone());
    lab.in_host(|| Plane::remove_by_config(&config)).expect("remove");
    lab.in_host(|| Plane::remove_by_config(&config)).expect("remove again");

    assert_eq!(lab.snapshot(), before, "links, routes and tables of the host are as before");
    assert!(!config.pin.exists(), "the pin is gone");
    let links = lab::output(inside.as_fd(), "ip -o link");
    assert_eq!(links.lines().count(), 1, "only lo is left inside: {links}");
    assert_eq!(lab::output(inside.as_fd(), "nft list ruleset"), "");
    assert!(!lab::output(machine.netns.as_fd(), "ip -o link").contains("eth0"));
}

#[test]
fn a_link_of_somebody_else_is_not_touched() {
    let Some(lab) = Lab::start("taken") else { return };
    ip(lab.host(), "link add users0 type veth peer name users1");
    let mut config = lab.config.clone();
    config.outside = "users0".to_owned();
    config.pin.set_extension("other");
    config.public_v6.addr = lab::v6("2001:db8:6::");
    config.shared_v4 = lab::v4("192.0.2.99");

    let error = lab.in_host(|| Plane::ensure(&config)).expect_err("the name is taken");
    assert!(matches!(error, NetError::NameTaken { .. }), "{error}");
    lab.in_host(|| Plane::remove_by_config(&config)).expect("remove");
    assert!(lab.host_sees("ip -o link").contains("users0"));
}

#[test]
fn a_second_plane_does_not_take_the_public_routes_of_the_first() {
    let Some(lab) = Lab::start("routes") else { return };
    let (before, first) = (traces(&lab), lab.config.clone());
    let mut second = first.clone();
    second.outside = "perch9".to_owned();
    second.pin.set_extension("other");
    second.host_link = (lab::v4("172.31.255.36"), lab::v4("172.31.255.37"));

    for shared_v4 in [first.shared_v4, lab::v4("192.0.2.99")] {
        second.shared_v4 = shared_v4;
        let error = lab.in_host(|| Plane::ensure(&second)).expect_err("the pool is taken");
        assert!(error.to_string().contains("2001:db8:5::/48 by perch0"), "{error}");
    }
    second.public_v6.addr = lab::v6("2001:db8:6::");
    second.shared_v4 = first.shared_v4;
    let error = lab.in_host(|| Plane::ensure(&second)).expect_err("the address is taken");
    assert!(error.to_string().contains("192.0.2.10/32 by perch0"), "{error}");
    assert_eq!(traces(&lab), before, "nothing was made");
    assert!(!second.pin.exists(), "nothing was pinned");

    second.shared_v4 = lab::v4("192.0.2.99");
    lab.in_host(|| Plane::ensure(&second)).expect("it has its own");
    lab.in_host(|| Plane::remove_by_config(&second)).expect("remove");
    assert_eq!(traces(&lab), before, "the first one's are as before");
}

#[test]
fn routes_that_somebody_flushed_come_back_and_others_stay() {
    let Some(lab) = Lab::start("renew") else { return };
    lab.plane.ensure_network(lab::prefix("fdaa:1:2::"), None).expect("a network");
    let before = traces(&lab);
    for route in ["-6 route del 2001:db8:5::/48", "-6 route del fdaa:1:2::/48"] {
        ip(lab.host(), route);
    }
    ip(lab.host(), "route del 192.0.2.10");
    assert_ne!(traces(&lab), before);
    lab.plane.refresh_host().expect("refresh");
    assert_eq!(traces(&lab), before);

    ip(lab.host(), "route del 192.0.2.10");
    ip(lab.host(), "route add 192.0.2.10 dev lo");
    lab.plane.refresh_host().expect("refresh");
    assert!(lab.host_sees("ip route").contains("192.0.2.10 dev lo"), "it is somebody else's now");
}

/// What planes make on a host, without what the kernel adds to it by and by, such as the state of links.
fn traces(lab: &Lab) -> String {
    let links = lab.host_sees("ip -o link").lines().count();
    let routes = ["ip route show table all", "ip -6 route show table all"];
    let routes = routes.map(|command| lab.host_sees(command)).concat().replace(" linkdown", "");
    let made: Vec<&str> = routes.lines().filter(|line| line.contains("proto static")).collect();
    format!("{links} links\n{}\n{}", made.join("\n"), lab.host_sees("nft list tables"))
}

#[test]
fn the_doctor_finds_this_host_fit() {
    if lab::skip("doctor") {
        return;
    }
    for check in doctor() {
        assert!(check.ok, "{check:?}");
        assert!(check.remedy.is_empty() && !check.detail.is_empty(), "{check:?}");
    }
}

#[test]
fn a_network_is_named_by_any_of_its_addresses() {
    assert_eq!(
        Prefix48::of(v6("fdaa:0:1:a7b:1:0:1:2")).first(),
        Ipv6Addr::from_bits(0xfdaa << 112 | 1 << 80)
    );
}

/// A user and group that nobody is, and another.
const STRANGER: (u32, u32) = (54_321, 54_321);
const MEMBER: (u32, u32) = (54_322, 54_400);
const ROOT: (u32, u32) = (0, 0);

/// Opens a network with the host in it and an app; returns the app's private and public address.
fn host_and_app(lab: &Lab) -> (SocketAddr, SocketAddr) {
    let network = prefix("fdaa:0:1::");
    lab.plane.ensure_network(network, Some(v6("fdaa:0:1:a7b:1:0:a:2"))).expect("network");
    let (app, public) = (v6("fdaa:0:1:0:1::2"), v6("2001:db8:5::2"));
    lab.plane
        .publish(app.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Network(network))
        .expect("publish");
    lab.plane
        .publish(public.into(), Ports::tcp(&[(HTTP, HTTP)]), Visible::Everyone)
        .expect("publish");
    ((app, HTTP).into(), (public, HTTP).into())
}

fn check_callers(lab: &Lab, private: SocketAddr, allowed: &[(u32, u32)]) {
    for caller in [ROOT, MEMBER, STRANGER] {
        let called = dial_as(lab.host(), caller, private);
        if allowed.contains(&caller) {
            called.unwrap_or_else(|error| panic!("{caller:?} is refused: {error}"));
        } else {
            let error = called.expect_err("not allowed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "at once: {caller:?}");
        }
    }
}

#[test]
fn only_those_on_the_host_who_may_reach_private_addresses() {
    let Some(mut lab) = Lab::start("access") else { return };
    let (private, public) = host_and_app(&lab);
    let listeners = lab.plane.listeners().expect("listeners");
    check_callers(&lab, private, &[ROOT, MEMBER, STRANGER]);
    let by_user = HostAccess::Members { uids: vec![MEMBER.0], gids: vec![] };
    let by_group = HostAccess::Members { uids: vec![], gids: vec![MEMBER.1] };
    for (access, allowed) in [
        (HostAccess::Root, &[ROOT][..]),
        (by_user, &[ROOT, MEMBER]),
        (by_group, &[ROOT, MEMBER]),
        (HostAccess::None, &[]),
    ] {
        lab = lab.restart_with(access);
        check_callers(&lab, private, allowed);
        dial_as(lab.host(), STRANGER, public).expect("public addresses are everybody's");
    }
    lab = lab.restart_with(HostAccess::All);
    check_callers(&lab, private, &[ROOT, MEMBER, STRANGER]);
    assert!(!lab.host_sees("nft list tables").contains("access"), "no rule where none is needed");
    drop(listeners);
}

#[test]
fn a_restricted_host_comes_back_after_a_flush_and_leaves_nothing() {
    let Some(lab) = Lab::start("flushed-access") else { return };
    let lab = lab.restart_with(HostAccess::Root);
    let (private, _) = host_and_app(&lab);
    let _listeners = lab.plane.listeners().expect("listeners");
    lab.nft("flush ruleset\n");
    lab.plane.refresh_host().expect("refresh");
    check_callers(&lab, private, &[ROOT]);
    lab.in_host(|| Plane::remove_by_config(&lab.config)).expect("remove");
    assert_eq!(lab.snapshot(), lab.before);
}

#[test]
fn an_open_connection_of_a_user_who_may_is_not_cut_when_its_socket_is_gone() {
    let Some(lab) = Lab::start("orphan") else { return };
    let lab = lab.restart_with(HostAccess::Root);
    let (private, _) = host_and_app(&lab);
    let listeners = lab.plane.listeners().expect("listeners");
    let mut client = dial_as(lab.host(), ROOT, private).expect("root may");
    let (mut server, _, _) = accept(&listeners.tcp6);
    client.set_nonblocking(true).expect("non-blocking");
    let mut sent = 0;
    while let Ok(len) = client.write(&[0; 65_536]) {
        sent += len;
    }
    // What waits to be sent has no owner any more.
    drop(client);
    server.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
    let received = std::io::copy(&mut server, &mut std::io::sink()).expect("to its end");
    assert_eq!(received, sent as u64);
}

#[test]
fn datagrams_of_a_user_who_may_not_are_refused() {
    let Some(lab) = Lab::start("datagrams") else { return };
    let lab = lab.restart_with(HostAccess::Root);
    let (private, _) = host_and_app(&lab);
    let send = |(uid, gid): (u32, u32)| {
        let sent = lab.in_host(|| {
            become_user(uid, gid)?;
            UdpSocket::bind("[::]:0")?.send_to(b"x", private)
        });
        sent.is_ok()
    };
    assert!(send(ROOT));
    assert!(!send(STRANGER));
}

//! `vmsg stat`: the numbers of a guest at work.

use frontend_shim::{Disk, Frontend, Operation};
use std::time::Duration;

use crate::rig::Machine;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn what_a_guest_holds_shows_while_it_holds_it() {
    let machine = Machine::start(1);
    let unserved = machine.dom0(&["stat", "--json"]);
    assert_eq!(unserved.json()["buses"], serde_json::json!([]));

    let backend = machine.start_backend();
    let disk = machine.disk("disk.img", &[0; 4096]);
    let config = format!("type=blk,path={}", disk.display());
    machine.dom0(&["attach", "guest1", &config]).succeeded();
    let idle = &machine.dom0(&["stat", "--json"]).json()["buses"][0];
    assert_eq!(idle["devices"], 1);
    assert_eq!(idle["faults"], 0);
    assert!(idle["link"].is_null(), "{idle}");

    let spec = format!("hosted:{},1", machine.dir().display());
    let mut frontend = Frontend::open(&spec.parse().unwrap(), 0).unwrap();
    frontend.connect(LIMIT).unwrap();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let operation = Operation::Read {
        sector: 0,
        len: 512,
    };
    disk.run(&mut frontend, operation).unwrap();

    let stat = machine.dom0(&["stat", "--json"]).json();
    let bus = &stat["buses"][0];
    assert_eq!(bus["backend_state"], "connected");
    assert_eq!(bus["frontend_state"], "connected");
    assert_eq!(bus["link"]["areas"], 1);
    let pages = ["ring_pages", "area_pages"].map(|key| bus["link"][key].as_u64().unwrap());
    // The broker, which nobody can talk into anything, counts the same pages.
    let [dom0, guest] = &stat["machine"].as_array().unwrap()[..] else {
        panic!("{stat}");
    };
    assert_eq!(dom0["mapped_pages"], pages.iter().sum::<u64>());
    assert!(guest["granted_pages"].as_u64().unwrap() >= pages.iter().sum());
    assert!(dom0["hypercalls"]["grant_map_pages"].as_u64().unwrap() >= pages.iter().sum());
    let counters = frontend.link().unwrap().counters();
    assert_eq!(bus["link"]["messages_received"], counters.sent);
    assert!(bus["link"]["messages_sent"].as_u64().unwrap() > 0);

    let text = machine.dom0(&["stat"]);
    let columns = |line: usize| {
        let line = text.stdout.lines().nth(line).unwrap();
        line.split_whitespace().count()
    };
    assert_eq!((columns(0), columns(1)), (15, 15), "{text:?}");
    assert_eq!((columns(3), columns(4)), (10, 10), "{text:?}");

    // A backend that is gone leaves what XenStore knows.
    disk.close(&mut frontend).unwrap();
    frontend.leave(LIMIT).unwrap();
    drop(backend);
    let unserved = machine.dom0(&["stat", "--json"]);
    assert!(unserved.json()["buses"][0]["faults"].is_null());
    assert!(
        unserved.stderr.contains("no backend of domain 0"),
        "{unserved:?}"
    );
}

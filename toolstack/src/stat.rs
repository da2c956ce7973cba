//! `vmsg stat`: what the buses hold and have done, as far as it can be known from outside a guest:
//! from XenStore, from the backends of this host, and on a hosted machine from its broker, which
//! counts every emulated hypercall.

use std::collections::BTreeMap;
use std::path::Path;

use backend::{Gauges, LinkGauges};
use frontend_shim::backend_command;
use serde::Serialize;
use xen_hal::PlatformSpec;
use xen_hal::hosted::Hypervisor;
use xen_hal::hosted::wire::{DomainReport, DomainState};
use xen_types::DomId;

use crate::bus::Bus;
use crate::list::{self, BusReport};
use crate::{output, platform};

/// Show what each bus holds and has done.
///
/// PAGES are the guest's pages that the backend has mapped: message ring, areas, and rings at grant
/// addresses. LENT are pages of the backend's own that stand for buffers at grant addresses now. IN and OUT are messages
/// since the frontend connected, EVENTS those that the backend sent, IDLE those of the guest that
/// found nothing to do, FAULTS the connections that a broken rule ended. `-` means that the frontend
/// is not connected, or that its backend does not run in this domain. In a driver domain: the buses
/// that it serves.
///
/// On a hosted machine a second table shows what each domain holds and how often it called the
/// hypervisor.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmsg stat
  watch -n1 vmsg stat
  vmsg stat --json | jq '[.buses[].link.area_pages // 0] | add'")]
pub(crate) struct Options {
    /// Print the numbers for programs.
    #[arg(long)]
    json: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    buses: Vec<BusStat>,
    /// The domains of a hosted machine; null on Xen, which does not tell.
    machine: Option<Vec<DomainStat>>,
}

/// One bus.
#[derive(Debug, Serialize)]
struct BusStat {
    domain: u16,
    name: Option<String>,
    bus: u32,
    backend: u16,
    backend_state: &'static str,
    frontend_state: &'static str,
    /// Devices that the toolstack attached.
    devices: usize,
    /// Null if no backend tells.
    faults: Option<u64>,
    /// Null if the frontend is not connected, or no backend tells.
    link: Option<LinkGauges>,
}

/// One domain of a hosted machine.
#[derive(Debug, Serialize)]
struct DomainStat {
    domain: u16,
    /// Dead, but others have pages of it mapped.
    zombie: bool,
    granted_pages: u32,
    mapped_pages: u32,
    ports: u32,
    nodes: u32,
    /// By type, since the domain was made.
    hypercalls: BTreeMap<&'static str, u64>,
}

pub(crate) fn run(spec: &PlatformSpec, options: &Options) -> anyhow::Result<()> {
    let report = Report {
        buses: buses(spec)?,
        machine: match spec {
            PlatformSpec::Xen => None,
            PlatformSpec::Hosted { dir, domid } => Some(machine(dir, *domid)?),
        },
    };
    if options.json {
        return output::print_json(&report);
    }
    let header = [
        "DOMAIN", "NAME", "BUS", "BACKEND", "BACK", "FRONT", "DEVICES", "PAGES", "AREAS", "LENT",
        "IN", "OUT", "EVENTS", "IDLE", "FAULTS",
    ];
    if report.buses.is_empty() {
        output::print(list::NOTHING)?;
    } else {
        let rows = report.buses.iter().map(BusStat::cells).collect();
        output::print(output::table(header, rows))?;
    }
    if let Some(machine) = &report.machine {
        let header = [
            "DOMAIN", "STATE", "GRANTED", "MAPPED", "PORTS", "NODES", "MAPS", "UNMAPS", "COPIES",
            "SENDS",
        ];
        let rows = machine.iter().map(DomainStat::cells).collect();
        output::print(format_args!("\n{}", output::table(header, rows)))?;
    }
    Ok(())
}

fn buses(spec: &PlatformSpec) -> anyhow::Result<Vec<BusStat>> {
    let (mut store, own) = platform::open_serving_store(spec)?;
    let mut told: BTreeMap<DomId, Option<Gauges>> = BTreeMap::new();
    let mut stats = Vec::new();
    for bus in list::buses(&mut store, own)? {
        let gauges = told
            .entry(bus.backend_id)
            .or_insert_with(|| ask(spec, own, bus.backend_id));
        let report = BusReport::read(&mut store, own, &bus)?;
        stats.push(BusStat::new(&bus, report, gauges.as_ref()));
    }
    Ok(stats)
}

/// The gauges of a domain's backend, if it runs and can be asked from here: its socket is one of its
/// own domain. The domains of a hosted machine share theirs.
fn ask(spec: &PlatformSpec, own: DomId, backend_id: DomId) -> Option<Gauges> {
    if *spec == PlatformSpec::Xen && backend_id != own {
        tracing::warn!(
            "domain {backend_id} tells what its backend holds only itself: run `vmsg stat` there"
        );
        return None;
    }
    match Gauges::read(&backend::run_dir(spec), backend_id) {
        Ok(Some(gauges)) => Some(gauges),
        Ok(None) => {
            let command = backend_command(spec, backend_id);
            tracing::warn!("no backend of domain {backend_id} runs: start {command}");
            None
        }
        Err(error) => {
            tracing::warn!("the backend of domain {backend_id} does not tell its gauges: {error}");
            None
        }
    }
}

/// What the broker tells domain `own`: dom0 everything, a guest what it holds itself.
fn machine(dir: &Path, own: DomId) -> anyhow::Result<Vec<DomainStat>> {
    let domains = Hypervisor::connect_as(dir, own)?.domains()?;
    Ok(domains
        .into_iter()
        .filter(|report| report.state != DomainState::Gone)
        .map(DomainStat::new)
        .collect())
}

impl BusStat {
    fn new(bus: &Bus, report: BusReport, gauges: Option<&Gauges>) -> Self {
        let instance = gauges.and_then(|gauges| {
            gauges.instances.iter().find(|instance| {
                instance.frontend == bus.frontend_id.0 && instance.handle == bus.handle
            })
        });
        Self {
            domain: report.domain,
            name: report.name,
            bus: report.bus,
            backend: report.backend,
            backend_state: report.backend_state,
            frontend_state: report.frontend_state,
            devices: report.devices.len(),
            faults: instance.map(|instance| instance.faults),
            link: instance.and_then(|instance| instance.link.clone()),
        }
    }

    fn cells(&self) -> [String; 15] {
        let link = |pick: fn(&LinkGauges) -> u64| {
            let value = self.link.as_ref().map(pick);
            value.map_or_else(String::new, |value| value.to_string())
        };
        [
            self.domain.to_string(),
            self.name.clone().unwrap_or_default(),
            self.bus.to_string(),
            self.backend.to_string(),
            self.backend_state.to_owned(),
            self.frontend_state.to_owned(),
            self.devices.to_string(),
            link(|link| {
                link.ring_pages as u64
                    + u64::from(link.area_pages)
                    + u64::from(link.grant_ring_pages)
            }),
            link(|link| link.areas as u64),
            link(|link| link.lent_pages.into()),
            link(|link| link.messages_received),
            link(|link| link.messages_sent),
            link(|link| link.notifications),
            link(|link| link.spurious_events),
            self.faults
                .map_or_else(String::new, |faults| faults.to_string()),
        ]
    }
}

impl DomainStat {
    fn new(report: DomainReport) -> Self {
        Self {
            domain: report.domid.0,
            zombie: report.state == DomainState::Zombie,
            granted_pages: report.granted_pages,
            mapped_pages: report.mapped_pages,
            ports: report.ports,
            nodes: report.nodes,
            hypercalls: report.counters.entries().into_iter().collect(),
        }
    }

    fn cells(&self) -> [String; 10] {
        let calls = |name| self.hypercalls.get(name).copied().unwrap_or(0).to_string();
        [
            self.domain.to_string(),
            if self.zombie { "zombie" } else { "alive" }.to_owned(),
            self.granted_pages.to_string(),
            self.mapped_pages.to_string(),
            self.ports.to_string(),
            self.nodes.to_string(),
            calls("grant_map_pages"),
            calls("grant_unmap_pages"),
            calls("grant_copy_segments"),
            calls("evtchn_send"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use xen_hal::hosted::Counters;

    use super::*;

    #[test]
    fn everything_that_is_mapped_is_in_one_column_and_what_is_lent_in_another() {
        let stat = BusStat {
            domain: 7,
            name: None,
            bus: 1,
            backend: 0,
            backend_state: "connected",
            frontend_state: "connected",
            devices: 2,
            faults: Some(3),
            link: Some(LinkGauges {
                port: 9,
                ring_pages: 4,
                areas: 1,
                area_pages: 512,
                grant_ring_pages: 3,
                lent_pages: 20,
                messages_received: 10,
                messages_sent: 11,
                notifications: 12,
                spurious_events: 13,
            }),
        };
        let cells = stat.cells();
        assert_eq!(cells[7..], ["519", "1", "20", "10", "11", "12", "13", "3"]);
    }

    #[test]
    fn a_column_stands_for_a_counter_of_that_name() {
        let counters = Counters {
            grant_map_pages: 1,
            grant_unmap_pages: 2,
            grant_copy_segments: 3,
            evtchn_send: 4,
            ..Counters::default()
        };
        let stat = DomainStat::new(DomainReport {
            domid: DomId(7),
            state: DomainState::Zombie,
            granted_pages: 5,
            mapped_pages: 6,
            ports: 8,
            nodes: 9,
            counters,
        });
        let expected = ["7", "zombie", "5", "6", "8", "9", "1", "2", "3", "4"];
        assert_eq!(stat.cells(), expected);
    }
}

//! What a text needs, against what its device has. wgpu itself does not check workgroup memory.

use super::compile::Facts;
use super::texts::Device;

/// WebGPU's default, and the least with which house kernels get along.
const STORAGE_BUFFERS: u32 = 8;
const HOUSE_STORAGE_BUFFERS: u32 = 7;

/// A slot of the loader's uniform ring, and the immediates that most devices with them have.
const PARAMS: u32 = 256;
const IMMEDIATES: u32 = 128;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    pub errors: Vec<String>,
    pub notices: Vec<String>,
}

pub fn judge(facts: &Facts, device: &Device) -> Judgement {
    let mut found = Judgement::default();
    let limits = [
        ("bytes of workgroup memory", facts.workgroup_bytes, device.workgroup_bytes),
        ("invocations in a workgroup", facts.invocations, device.threads),
        ("storage buffers", facts.storage_buffers, STORAGE_BUFFERS),
        ("bytes of parameters", facts.params_bytes, PARAMS),
    ];
    for (what, needed, available) in limits {
        if needed > available {
            found.errors.push(format!("{needed} {what}, the device has {available}"));
        }
    }
    let customs = [
        ("storage buffers", facts.storage_buffers, HOUSE_STORAGE_BUFFERS, STORAGE_BUFFERS),
        ("bytes of parameters", facts.params_bytes, IMMEDIATES, PARAMS),
    ];
    for (what, needed, custom, limit) in customs {
        if needed > custom && needed <= limit {
            found.notices.push(format!("{needed} {what}, more than the usual {custom}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device { subgroups: false, threads: 256, workgroup_bytes: 16 << 10 };

    #[test]
    fn at_the_limit_is_fine() {
        let facts = Facts {
            workgroup_bytes: 16 << 10,
            storage_buffers: 7,
            invocations: 256,
            params_bytes: 128,
        };
        assert_eq!(judge(&facts, &DEVICE), Judgement::default());
    }

    #[test]
    fn above_is_not() {
        let facts = Facts {
            workgroup_bytes: (16 << 10) + 16,
            storage_buffers: 9,
            invocations: 257,
            params_bytes: 260,
        };
        let judged = judge(&facts, &DEVICE);
        assert_eq!(judged.errors.len(), 4);
        assert_eq!(judged.errors[0], "16400 bytes of workgroup memory, the device has 16384");
        assert!(judged.notices.is_empty());
    }

    #[test]
    fn above_custom_is_a_notice() {
        let facts = Facts { storage_buffers: 8, params_bytes: 132, ..Facts::default() };
        let judged = judge(&facts, &DEVICE);
        assert!(judged.errors.is_empty());
        assert_eq!(judged.notices.len(), 2);
        assert_eq!(judged.notices[0], "8 storage buffers, more than the usual 7");
    }
}

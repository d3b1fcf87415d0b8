//! Folding any number of workgroups into the three dimensions of a dispatch.

/// Dimensions whose product is at least `groups`, each at most `limit`, with few idle groups:
/// `x * y * z < groups + y * z`. `None` if they do not fit; all zero for no group.
pub fn fold(groups: u64, limit: u32) -> Option<[u32; 3]> {
    let limit = u64::from(limit);
    if groups == 0 {
        return Some([0; 3]);
    }
    if limit == 0 {
        return None;
    }
    let y = groups.div_ceil(limit).min(limit);
    let z = groups.div_ceil(limit).div_ceil(y);
    if z > limit {
        return None;
    }
    let x = groups.div_ceil(y * z);
    // Each is at most `limit`, a u32.
    Some([x as u32, y as u32, z as u32])
}

#[cfg(test)]
mod tests {
    use super::fold;

    // tensorflow/tfjs#8373, ggml-org/llama.cpp#19965, cubecl#423: counts around the limit of one
    // dimension failed or corrupted.
    #[test]
    fn any_count_fits_with_few_idle_groups() {
        let limit = 65_535u32;
        let l = u64::from(limit);
        let counts =
            [1, 2, l - 1, l, l + 1, 4_194_240, 4_194_241, l * l - 1, l * l, l * l + 1, l * l * l];
        for groups in counts {
            let [x, y, z] = fold(groups, limit).expect("fits").map(u64::from);
            assert!(x <= l && y <= l && z <= l, "{groups}: {x} {y} {z}");
            assert!(x * y * z >= groups && x * y * z < groups + y * z, "{groups}: {x} {y} {z}");
        }
        assert_eq!(fold(0, limit), Some([0; 3]));
        assert_eq!(fold(l * l * l + 1, limit), None);
        assert_eq!(fold(7, 2), Some([2, 2, 2]));
        assert_eq!(fold(9, 2), None);
    }
}

use super::*;
use crate::ops::conv2d::model::CARDS;

fn problem(x: Shape, c_out: usize, k: usize, groups: usize) -> Option<Problem> {
    strided(x, c_out, k, groups, 1)
}

fn strided(x: Shape, c_out: usize, k: usize, groups: usize, stride: usize) -> Option<Problem> {
    let conv = Conv2d {
        stride,
        pad: k / 2,
        groups,
    };
    let w = Shape::new(c_out, k, k, x.c / groups);
    let y = conv.output_shape("test", x, w).unwrap();
    Problem::of_shapes(x, w, y, true, conv)
}

/// Every pixel in one tile of one split, whatever the shape.
#[test]
fn tiles_and_splits_cover_all_pixels_once() {
    let card = &CARDS[0];
    let shapes = [
        (Shape::new(128, 32, 32, 64), 64, 3, 1, 1),
        (Shape::new(1024, 2, 2, 512), 512, 3, 1, 1),
        (Shape::new(6, 7, 9, 40), 72, 3, 1, 1),
        (Shape::new(33, 8, 8, 512), 1024, 1, 1, 1),
        (Shape::new(5, 96, 96, 64), 128, 3, 2, 1),
        (Shape::new(16, 3, 17, 96), 64, 3, 1, 1),
        (Shape::new(128, 32, 32, 256), 256, 3, 2, 2),
        (Shape::new(9, 15, 18, 64), 64, 3, 1, 2),
        (Shape::new(128, 32, 32, 256), 512, 1, 1, 2),
        (Shape::new(9, 16, 10, 64), 64, 1, 1, 3),
    ];
    for (x, c_out, k, groups, stride) in shapes {
        let problem = strided(x, c_out, k, groups, stride).unwrap();
        let (plan, y) = (problem.plan(card).unwrap(), problem.y);
        let p = plan.arguments();
        assert!(plan.splits * plan.split_tiles >= plan.tiles());
        assert!(
            (plan.splits - 1) * plan.split_tiles < plan.tiles(),
            "an empty split"
        );
        assert!(plan.down() * plan.rows >= y.h && (plan.down() - 1) * plan.rows < y.h);
        assert!(plan.across() * plan.cols >= y.w && (plan.across() - 1) * plan.cols < y.w);
        // Sixteen pixels of dy and what they meet of x: image and column of the first and of the ninth.
        let step = problem.step;
        for i in (0..p.line as usize).step_by(16).filter(|_| k == 3) {
            let under =
                |pixel: usize| pixel / plan.images * step * plan.images + pixel % plan.images;
            assert_eq!(under(i), i * step);
            assert_eq!(under(i + 8), i * step + p.octet as usize);
        }
        // Lines of whole steps, and taps that keep the swizzle.
        assert!(p.line.is_multiple_of(32) && p.pixels.is_multiple_of(p.line));
        assert!(k == 1 || p.images.is_multiple_of(8));
        assert!(plan.shared() <= SHARED && plan.stages >= 2);
        assert!(plan.in_blocks() * plan.block()[0] >= x.c / groups);
        assert!(plan.out_blocks() * plan.block()[1] >= c_out / groups);
        assert!(plan.pixels() <= MAX_PIXELS);
    }
}

#[test]
fn what_does_not_fit_is_left_to_others() {
    assert!(problem(Shape::new(8, 8, 8, 3), 64, 3, 1).is_none());
    assert!(problem(Shape::new(8, 8, 8, 64), 20, 3, 1).is_none());
    assert!(problem(Shape::new(8, 8, 8, 64), 64, 5, 1).is_none());
    // One pixel: tiles of 32 images are more than half empty.
    let single = problem(Shape::new(1, 1, 1, 64), 64, 1, 1).unwrap();
    assert!(single.plan(&CARDS[0]).is_none());
}

use super::*;

fn parse(files: &[(&str, &str)]) -> Result<Interface, String> {
    Interface::parse(
        files
            .iter()
            .map(|&(name, text)| (name.into(), text.into()))
            .collect(),
    )
}

fn kernel_file(text: &str) -> Interface {
    parse(&[("op.cu", text)]).unwrap()
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    match parse(&[("op.cu", text)]) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(message) => assert_eq!(message, expected),
    }
}

const RELU: &str = "\
#include \"gpu.cuh\"
struct Clamp { float low, high; };
constexpr int BLOCK = 8 * 32;

/// y = min(max(x, low), high)
// instances: T = f32 bf16; K = 1 3
template <class T, bool NOISE, int K>
KERNEL(BLOCK * K, 2) relu_forward(T *y, const T *__restrict__ x, uint64_t n, Clamp clamp) {
  if (n > 0) { y[0] = x[0]; }
}
";

#[test]
fn instances_are_all_combinations_in_order() {
    let names = [
        "relu_forward_f32_1",
        "relu_forward_f32_3",
        "relu_forward_f32_noise_1",
        "relu_forward_f32_noise_3",
        "relu_forward_bf16_1",
        "relu_forward_bf16_3",
        "relu_forward_bf16_noise_1",
        "relu_forward_bf16_noise_3",
    ];
    let interface = kernel_file(RELU);
    assert_eq!(interface.stems(), ["op"]);
    assert_eq!(interface.symbols("op"), names);
}

#[test]
fn defaults_are_the_three_types_and_both_truths() {
    let interface = kernel_file("template <class T, bool FLAG>\nKERNEL(32) f(T *y) {}\n");
    let names = [
        "f_f32",
        "f_f32_flag",
        "f_bf16",
        "f_bf16_flag",
        "f_f16",
        "f_f16_flag",
    ];
    assert_eq!(interface.symbols("op"), names);
}

#[test]
fn several_lists_add_up() {
    let interface = kernel_file(
        "// instances: T = f32; K = 1\n// instances: T = bf16 f32; K = 1, 2\n\
         template <class T, int K>\nKERNEL(32) f(T *y) {}\n",
    );
    assert_eq!(
        interface.symbols("op"),
        ["f_f32_1", "f_bf16_1", "f_bf16_2", "f_f32_2"]
    );
}

#[test]
fn wrapper_instantiates_under_plain_names() {
    let wrapper = kernel_file(RELU).wrapper("op");
    let expected = "\
// Generated from op.cu by kernels/interface.rs.
#include \"gpu.cuh\"
namespace body {
#include \"op.cu\"
}

extern \"C\" __global__ void __launch_bounds__(256, 2) relu_forward_f32_1(float *y, \
const float *__restrict__ x, uint64_t n, body::Clamp clamp) \
{ gpu::begin(); body::relu_forward<float, false, 1>(y, x, n, clamp); }
GPU_EXPORT(relu_forward_f32_1)

extern \"C\" __global__ void __launch_bounds__(768, 2) relu_forward_f32_3(";
    assert_eq!(&wrapper[..expected.len().min(wrapper.len())], expected);
}

#[test]
fn wrapper_of_a_plain_kernel() {
    let wrapper = kernel_file("KERNEL(64) step(float *w, bool decay) {}\n").wrapper("op");
    let expected = "\
extern \"C\" __global__ void __launch_bounds__(64) step(float *w, bool decay) \
{ gpu::begin(); body::step(w, decay); }
GPU_EXPORT(step)
";
    assert!(wrapper.ends_with(expected), "{wrapper}");
}

#[test]
fn tensor_maps_stay_where_the_launch_puts_them() {
    let interface =
        kernel_file("template <class T>\nKERNEL(64) f(T *y, const CUtensorMap &map) {}\n");
    let wrapper = interface.wrapper("op");
    let expected = "f_f32(float *y, const __grid_constant__ CUtensorMap map) \
                    { gpu::begin(); body::f<float>(y, map); }\n";
    assert!(wrapper.contains(expected), "{wrapper}");
    let rust = interface.rust();
    assert!(rust.contains("    mut map: TensorMap,\n"), "{rust}");
    assert!(rust.contains("(&raw mut map).cast(),"), "{rust}");
    for wrong in [
        "CUtensorMap &map",
        "const CUtensorMap map",
        "const CUtensorMap *map",
    ] {
        let text = format!("KERNEL(32) f({wrong}) {{}}\n");
        let reason = match wrong {
            "const CUtensorMap map" => "'const CUtensorMap map' is not 'type name' or 'type *name'",
            _ => "write 'const CUtensorMap &name'",
        };
        refused(&text, &format!("op.cu:1: f: {reason}"));
    }
}

#[test]
fn structs_follow_the_rules_of_c() {
    let interface = parse(&[
        (
            "rows.cuh",
            "/// One image.\nstruct Row { uint32_t id, draw; };\n",
        ),
        (
            "op.cu",
            "constexpr int MAX = 3;
             struct Inner { uint8_t tag[4]; uint32_t wide; };
             struct Args {
               // not ours to say
               uint32_t a;
               const float *w, *dw;
               Inner inner[MAX];
               bool flag;
               __device__ uint32_t twice() const { return 2 * a; }
               uint64_t n[2][4];
             };
             KERNEL(32) f(Args all, const Row *rows, const Inner *list) {}\n",
        ),
    ])
    .unwrap();
    let rust = interface.rust();
    for line in [
        "/// One image.\n#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]\n",
        "pub inner: [Inner; 3],",
        "pub n: [[u64; 4]; 2],",
        "assert!(size_of::<Inner>() == 8);",
        "assert!(std::mem::offset_of!(Inner, wide) == 4);",
        "assert!(std::mem::offset_of!(Args, w) == 8);",
        "assert!(std::mem::offset_of!(Args, dw) == 16);",
        "assert!(std::mem::offset_of!(Args, inner) == 24);",
        "assert!(std::mem::offset_of!(Args, flag) == 48);",
        "assert!(std::mem::offset_of!(Args, n) == 56);",
        "assert!(size_of::<Args>() == 120);",
        "impl Element for Row {\n    const ELEM: Elem = Elem::Struct(\"Row\");",
        "pub mod op {",
        "impl Element for Inner {",
    ] {
        assert!(rust.contains(line), "no {line:?} in\n{rust}");
    }
    // Padding: no bytes to upload.
    assert!(
        rust.contains("#[derive(Clone, Copy, Debug)]\n#[repr(C)]"),
        "{rust}"
    );
    assert!(!rust.contains("impl Element for Args"), "{rust}");
}

#[test]
fn headers_are_read_behind_what_they_include() {
    let interface = parse(&[
        (
            "a.cuh",
            "#include \"b.cuh\"\nstruct Outer { Inner x, y[N]; };\n",
        ),
        (
            "b.cuh",
            "#include \"a.cuh\"\nconstexpr int N = 2;\nstruct Inner { uint32_t x; };\n",
        ),
        ("op.cu", "KERNEL(32) f(Outer o, float *y) {}\n"),
    ]);
    assert!(
        interface
            .unwrap()
            .rust()
            .contains("assert!(size_of::<Outer>() == 12);")
    );
}

#[test]
fn structs_that_no_kernel_takes_stay_out() {
    let rust = kernel_file("struct Lanes { float x[4]; };\nKERNEL(32) f(float *y) {}\n").rust();
    assert!(!rust.contains("Lanes"), "{rust}");
}

#[test]
fn launcher_takes_template_arguments_first() {
    let rust = kernel_file(RELU).rust();
    for line in [
        "/// y = min(max(x, low), high)\n",
        "    gpu: &Gpu,\n    t: DType,\n    noise: bool,\n    k: u32,\n    grid: [u32; 3],\n    \
         shared: u32,\n    y: Ptr,\n    x: Ptr,\n    mut n: u64,\n    mut clamp: Clamp,\n) -> \
         Result<()> {\n",
        "(DType::BF16, true, 3,) => (&INSTANCES[7], 768),",
        "let mut x = address(kernel, \"x\", x, t.elem());",
        "Kernel { module: \"op\", name: \"relu_forward_bf16_noise_3\" }",
    ] {
        assert!(rust.contains(line), "no {line:?} in\n{rust}");
    }
}

#[test]
fn comments_strings_and_directives_are_no_code() {
    let interface = kernel_file(
        "#define KERNEL(...) \\\n  KERNEL(\n/* KERNEL(1) a( */ // KERNEL(1) b(\n\
         const char *s = \"KERNEL(1) c( \\\" {\";\nKERNEL(0x20) d(float *y) { '\"'; }\n",
    );
    assert_eq!(interface.symbols("op"), ["d"]);
}

#[test]
fn inputs_are_the_included_files() {
    let interface = parse(&[
        ("a.cu", "#include \"b.cuh\"\n#include <cuda.h>\n"),
        ("b.cuh", "#include \"c.cuh\"\n"),
        ("c.cuh", "#include \"b.cuh\"\n#include \"elsewhere.h\"\n"),
        ("d.cuh", ""),
    ])
    .unwrap();
    let names: Vec<&str> = interface.inputs("a").iter().map(|input| input.0).collect();
    assert_eq!(names, ["a.cu", "b.cuh", "c.cuh"]);
}

#[test]
fn bad_templates_are_refused() {
    refused(
        "\ntemplate <class T, int K>\nKERNEL(32) f(T *y) {}\n",
        "op.cu:3: f: list the values of 'int K' directly above 'template', '// instances: K = 1 3'",
    );
    refused(
        "// instances: J = 1\ntemplate <int K>\nKERNEL(32) f(float *y) {}\n",
        "op.cu:1: f has no template parameter 'J'",
    );
    refused(
        "// instances: T = f64\ntemplate <class T>\nKERNEL(32) f(T *y) {}\n",
        "op.cu:1: 'f64' is no value of T: f32, bf16 or f16 is expected",
    );
    refused(
        "// instances: K = -1\ntemplate <int K>\nKERNEL(32) f(float *y) {}\n",
        "op.cu:1: '-1' is no value of K: a number from 0 on is expected",
    );
    refused(
        "// instances: K\ntemplate <int K>\nKERNEL(32) f(float *y) {}\n",
        "op.cu:1: write 'NAME = value value', not 'K'",
    );
    refused(
        "// instances: K = 1\n\ntemplate <int K>\nKERNEL(32) f(float *y) {}\n",
        "op.cu:4: f: list the values of 'int K' directly above 'template', '// instances: K = 1 3'",
    );
    refused(
        "// instances: T = f32\n\ntemplate <class T>\nKERNEL(32) f(T *y) {}\n",
        "op.cu:1: this 'instances:' line stands above no kernel",
    );
    refused(
        "template <class T = float>\nKERNEL(32) f(T *y) {}\n",
        "op.cu:1: f: a template parameter is a kind and a name",
    );
    refused(
        "template <float X>\nKERNEL(32) f(float *y) {}\n",
        "op.cu:1: f: a template parameter is 'class', 'bool' or 'int', not 'float'",
    );
}

#[test]
fn bad_parameters_are_refused() {
    let known = "float, double, __nv_bfloat16, __half, uint8_t, int32_t, uint32_t, uint64_t, bool";
    refused(
        "KERNEL(32) f(float *y,\n  int n) {}\n",
        &format!(
            "op.cu:2: f: 'int' is no type of a parameter; known are {known} and plain structs of \
             ours"
        ),
    );
    refused(
        "template <class T>\nKERNEL(32) f(T *y, T value) {}\n",
        "op.cu:2: f: 'T value' by value: pass a float",
    );
    refused(
        "KERNEL(32) f(float **y) {}\n",
        "op.cu:1: f: 'float * * y' is not 'type name' or 'type *name'",
    );
    refused(
        "KERNEL(32) f(uint8_t x) {}\n",
        "op.cu:1: f: uint8_t by value: pass a float or uint32_t",
    );
    refused(
        "KERNEL(32) f(bool *x) {}\n",
        "op.cu:1: f: a pointer to bool: take uint8_t",
    );
    refused(
        "template <int K>\nKERNEL(32) f(float *y, uint32_t k) {}\n",
        "op.cu:2: f: parameter 'k' needs another name: a template parameter has that name in the \
         launcher",
    );
    refused(
        "KERNEL(32) f(float *in) {}\n",
        "op.cu:1: f: parameter 'in' needs another name: it is a keyword of Rust",
    );
    refused(
        "KERNEL(32) f(float *grid) {}\n",
        "op.cu:1: f: parameter 'grid' needs another name: the launcher uses that name",
    );
    refused(
        "KERNEL(32) f(float *y, float *y) {}\n",
        "op.cu:1: f: parameter 'y' needs another name: it is there twice",
    );
}

#[test]
fn bad_structs_are_refused_where_a_kernel_takes_them() {
    let kernel = "KERNEL(32) f(Args a) {}\n";
    for (text, reason) in [
        (
            "struct Args { int n; };\n",
            "line 1: 'int' is no type of a field",
        ),
        (
            "struct Args { float x = 1; };\n",
            "line 1: a field is written 'type name;' or 'type name[count];'",
        ),
        (
            "struct Args {\n uint32_t n[N]; };\n",
            "line 2: 'N' is no integer known before compiling",
        ),
        (
            "struct Args { uint32_t type; };\n",
            "line 1: field 'type' needs another name: a keyword of Rust",
        ),
        ("struct Args { };\n", "it has no fields"),
        (
            "template <class T> struct Args { T x; };\n",
            "it is a template",
        ),
    ] {
        let line = 1 + text.matches('\n').count();
        refused(
            &format!("{text}{kernel}"),
            &format!("op.cu:{line}: f: struct Args cannot be a parameter: {reason}"),
        );
        // As long as no kernel takes it, it is none of our business.
        kernel_file(text);
    }
}

#[test]
fn bad_kernels_are_refused() {
    refused(
        "KERNEL(32) (float *y) {}\n",
        "op.cu:1: KERNEL(threads) is followed by the kernel's name and parameters",
    );
    refused(
        "KERNEL(32) f(float *y);\n",
        "op.cu:1: f: the body is expected behind the parameters",
    );
    refused(
        "KERNEL(32) f(float *y {\n",
        "op.cu:1: this '(' is never closed",
    );
    refused(
        "KERNEL(2048) f(float *y) {}\n",
        "op.cu:1: f: a block has 1 to 1024 threads, and min_blocks is 1 to 32",
    );
    refused(
        "KERNEL(N) f(float *y) {}\n",
        "op.cu:1: 'N' is no integer known before compiling",
    );
    refused(
        "KERNEL() f(float *y) {}\n",
        "op.cu:1: write KERNEL(threads) or KERNEL(threads, min_blocks)",
    );
    refused(
        "KERNEL(32) f(float *y) {}\n\nKERNEL(32) f(float *y) {}\n",
        "op.cu:3: f has an instance named f, and so has f in op.cu:1",
    );
    let header = parse(&[("op.cuh", "KERNEL(32) f(float *y) {}\n")]);
    assert_eq!(
        header.err().unwrap(),
        "op.cuh:1: kernels stand in .cu files; a header is not compiled"
    );
}

#[test]
fn a_missing_folder_is_named() {
    let error = Interface::read(Path::new("/nonexistent/kernels"))
        .err()
        .unwrap();
    assert!(error.starts_with("/nonexistent/kernels: "), "{error}");
}

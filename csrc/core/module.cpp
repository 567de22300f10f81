// The Python module pyext._C: loads the torch ops of all families, and offers what is not a tensor
// op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/fma_peak.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  pyext::isa();  // a wrong PYEXT_ISA is an error of the import
  m.doc() = "Compiled part of pyext: torch ops, and the facts of this build.";
  m.def("isas", &pyext::isas, "Instruction sets usable here, best last.");
  m.def("isa", &pyext::isa, "The instruction set in use.");
  m.def("set_isa", &pyext::set_isa, py::arg("name"));
  m.def("load_backend", &pyext::load_backend, py::arg("name"), py::arg("path"));
  m.def("running_threads", &pyext::running_threads, py::call_guard<py::gil_scoped_release>());
  m.def("fma_peak", &pyext::fma_peak, py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
  m.def("build_info", [] {
    return py::dict(py::arg("torch") = PYEXT_TORCH_VERSION, py::arg("compiler") = PYEXT_COMPILER,
                    py::arg("cuda") = PYEXT_CUDA_VERSION);
  });
}

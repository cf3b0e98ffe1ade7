"""The public names and where each is defined: this file is the list of them, for type checkers and at run time."""

from halpiee import analysis as analysis
from halpiee import deploy as deploy
from halpiee import methods as methods
from halpiee import reconstruction as reconstruction
from halpiee import report as report
from halpiee import saliency as saliency
from halpiee import selection as selection
from halpiee import sparsity as sparsity
from halpiee import structure as structure
from halpiee import tasks as tasks
from halpiee import zoo as zoo
from halpiee.errors import BudgetError as BudgetError
from halpiee.errors import HalpieeError as HalpieeError
from halpiee.hub import push as push
from halpiee.methods.channels import HALP as HALP
from halpiee.methods.channels import early as early
from halpiee.methods.channels import scaled_dense as scaled_dense
from halpiee.methods.channels import small_dense as small_dense
from halpiee.methods.dynamic import SET as SET
from halpiee.methods.dynamic import SETITOP as SETITOP
from halpiee.methods.dynamic import SNFS as SNFS
from halpiee.methods.dynamic import RigL as RigL
from halpiee.methods.dynamic import RigLITOP as RigLITOP
from halpiee.methods.dynamic import Static as Static
from halpiee.methods.gradual import GMP as GMP
from halpiee.methods.gradual import FilterPruning as FilterPruning
from halpiee.methods.gradual import GraNet as GraNet
from halpiee.methods.iee import IEE as IEE
from halpiee.methods.one_shot import SNIP as SNIP
from halpiee.methods.one_shot import AtInit as AtInit
from halpiee.methods.one_shot import GraSP as GraSP
from halpiee.methods.one_shot import SynFlow as SynFlow
from halpiee.methods.one_shot import prune_once as prune_once
from halpiee.methods.registry import method as method
from halpiee.methods.rewind import rewind as rewind
from halpiee.reconstruction.repair import repair as repair
from halpiee.saliency.registry import criterion as criterion
from halpiee.saliency.score import score as score
from halpiee.selection.choose import select as select
from halpiee.selection.cost import LatencyCost as LatencyCost
from halpiee.selection.grid import GridSolution as GridSolution
from halpiee.selection.solve import solve_grid as solve_grid
from halpiee.sparsity.distribution import ERK as ERK
from halpiee.sparsity.distribution import NM as NM
from halpiee.sparsity.distribution import Global as Global
from halpiee.sparsity.distribution import Latency as Latency
from halpiee.sparsity.distribution import PerLayer as PerLayer
from halpiee.sparsity.distribution import Uniform as Uniform
from halpiee.structure.groups import Structure as Structure
from halpiee.structure.plan import Plan as Plan
from halpiee.structure.plan import Selection as Selection
from halpiee.structure.rules import add_rule as add_rule
from halpiee.structure.shrink import masked as masked
from halpiee.structure.shrink import shrink as shrink
from halpiee.structure.trace import trace as trace
from halpiee.tasks.task import Metric as Metric
from halpiee.tasks.task import Task as Task
from halpiee.tasks.task import task as task
from halpiee.training.weights import load as load

__all__: list[str]
__version__: str

def __dir__() -> list[str]: ...
